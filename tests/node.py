"""Node.js for the tests of what others run with it: its packages by their lock, or a reason why not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def node_with_packages_of(directory: Path) -> str:
    """The `node` to run programs in `directory` with. Skips where there is none; CI fails without packages."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no node and npm here")
    installed, lock = directory / "node_modules/.package-lock.json", directory / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=180, check=False)
        if ended.returncode and not os.environ.get("CI"):
            pytest.skip(f"npm can't get the packages: {ended.stderr.strip()[:200]}")
        assert ended.returncode == 0, ended.stderr
    return node
