"""The programs that `make tools` builds from Go modules, or a reason why a test can't have one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

BUILT = Path(__file__).parents[1] / ".tools"


def find_tool(name: str) -> str:
    """Return the path of the program. Skips where it isn't built; CI, which builds all where there is Go, fails."""
    found = shutil.which(name, path=BUILT) or shutil.which(name)
    if found is None:
        assert not (os.environ.get("CI") and shutil.which("go")), f"{name} is missing: run make tools"
        pytest.skip(f"there is no {name} here: run make tools, which needs Go")
    return found
