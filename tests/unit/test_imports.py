"""What starts fast imports little: modules are checked, since times depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from task_bridge.cli import COMMANDS, load_command

SERVICE = ["faststream", "httpx", "lxml", "uvicorn", "starlette", "jinja2", "prometheus_client", "structlog", "uvloop"]
ASKING = sorted(name for name, command in COMMANDS.items() if command.asks)


def imported(statement: str, *arguments: str) -> set[str]:
    """The packages and modules that this statement imports in a process of its own."""
    listing = "import sys, atexit, json; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))"
    command = [sys.executable, "-c", f"{listing}\n{statement}", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return set(json.loads(ended.stderr.splitlines()[-1]))


RUN = "from task_bridge.__main__ import main; main()"


@pytest.mark.parametrize("option", ["--version", "--help", "-h"])
def test_version_and_help_import_nothing_of_the_service(option: str) -> None:
    modules = imported(RUN, option)
    assert not modules & {*SERVICE, "nats", "pydantic", "msgspec", "asyncio"}
    ours = {name for name in modules if name.startswith("task_bridge")}
    assert ours == {"task_bridge", "task_bridge.__main__", "task_bridge.cli"}


@pytest.mark.parametrize("command", ASKING)
def test_commands_that_ask_import_no_server(command: str) -> None:
    modules = imported(f"from task_bridge.cli import load_command; load_command({command!r})")
    assert not modules & {*SERVICE, "nats.micro.service", "task_bridge.app", "task_bridge.vcenter"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_commands_says_what_that_of_each_does(name: str) -> None:
    help_text = load_command(name).help
    assert " ".join(help_text.split("\n\n")[0].split()) == COMMANDS[name].help
