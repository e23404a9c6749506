"""What a module says of itself is what import-linter checks."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "service" / "task_bridge"


def test_every_module_that_says_it_is_pure_is_in_the_pure_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [one for one in settings["contracts"] if one["type"] == "forbidden"]
    checked = [name.removeprefix("task_bridge.").replace(".", "/") for name in contract["source_modules"]]
    for file in PACKAGE.rglob("*.py"):
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(file.read_text())) or ""):
            name = str(file.relative_to(PACKAGE).with_suffix(""))
            assert any(name == part or name.startswith(f"{part}/") for part in checked), (
                f"{name} is checked by no contract"
            )


def test_there_are_at_most_eight_layers() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layered = [one["layers"] for one in settings["contracts"] if one["type"] == "layers"]
    assert layered
    assert all(len(layers) <= 8 for layers in layered)
