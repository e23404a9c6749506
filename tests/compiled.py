"""The examples in Go, Java and Rust, compiled where their toolchain is; or a reason why not."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
BUILT = Path(__file__).parents[1] / ".tools" / "examples"
COMPILED = ["go", "java", "rust"]


def compile_example(language: str, name: str) -> list[str]:
    """Return how the compiled program is started. Skips without the toolchain; CI fails if it doesn't compile."""
    return {"go": _compile_go, "java": _compile_java, "rust": _compile_rust}[language](name)


def _compile_go(name: str) -> list[str]:
    _run("go", ("go", "build", "-o", f"{BUILT}/go/", "./..."))
    return [f"{BUILT}/go/{name}"]


def _compile_java(name: str) -> list[str]:
    target = f"-DbuildDirectory={BUILT}/java"
    _run("java", ("mvn", "-q", "-B", target, "compile", "dependency:copy-dependencies"))
    path = f"{BUILT}/java/classes{os.pathsep}{BUILT}/java/dependency/*"
    return [shutil.which("java") or "java", "-cp", path, f"example.{name.capitalize()}"]


def _compile_rust(name: str) -> list[str]:
    _run("rust", ("cargo", "build", "--quiet"), CARGO_TARGET_DIR=str(BUILT / "rust"))
    return [f"{BUILT}/rust/debug/{name}"]


@functools.cache
def _run(language: str, command: tuple[str, ...], **more: str) -> None:
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"there is no {command[0]} here")
    (BUILT / language).mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{language}.lock").open("w") as lock:  # the tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        _compile([program, *command[1:]], EXAMPLES / language, {**os.environ, **more})


def _compile(command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"it doesn't compile, maybe for want of packages: {(done.stderr or done.stdout).strip()[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
