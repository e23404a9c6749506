"""What a requester's install needs: the client and the asking commands start without the rest of the service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from task_bridge.domain.errors import CannotStart
from task_bridge.settings.nats import NatsSettings, load_client_settings

ROOT = Path(__file__).parents[2]
MISSING = [
    *("aiohttp", "faststream", "fast_depends", "httpx", "jinja2", "lxml", "prometheus_client", "pydantic_settings"),
    *("sniffio", "starlette", "structlog", "uvicorn", "uvloop"),
]
"""What requirements-client.txt leaves out. With it there is pydantic, which typer needs, but no use is made of it."""
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])
sys.meta_path.insert(0, Block())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code where the modules of the service are missing."""
    command = [sys.executable, "-c", BLOCK + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})


def test_the_client_imports_no_part_of_the_service_and_no_pydantic() -> None:
    done = run_python(
        "import task_bridge.client\nprint([name for name in ('pydantic', 'typer', 'rich') if name in sys.modules])"
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


COMMANDS = ["watch", "events", "list", "get", "unwatch", "cancel", "follow", "follows", "unfollow", "schema"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_asking_command_starts_without_the_service(command: str) -> None:
    done = run_python("from task_bridge.__main__ import main\nmain()", command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", [["serve"], ["check"], ["demo"], ["simulate"], ["provision"]])
def test_a_command_that_needs_the_service_says_how_to_install_it(command: list[str]) -> None:
    done = run_python("from task_bridge.__main__ import main\nmain()", *command)
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"This command needs the whole service, of which \w+ is missing: pip install vcenter-task-bridge", line
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_what_a_requester_installs_is_what_the_service_has_and_much_less() -> None:
    def read(name: str) -> dict[str, str]:
        text = (ROOT / "deploy" / name).read_text()
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.M))

    requester, service = read("requirements-client.txt"), read("requirements.txt")
    assert requester.items() <= service.items()
    assert {"nats-py", "msgspec", "typer", "rich"} <= requester.keys()
    assert not {name.replace("_", "-") for name in MISSING} & requester.keys()
    assert "--hash=sha256:" in (ROOT / "deploy" / "requirements-client.txt").read_text()


def test_a_client_reads_nats_and_the_prefix_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BRIDGE_NATS_URL=nats://a,b\nBRIDGE_NATS_TOKEN=\nBRIDGE_ACK_WAIT=soon\n")
    given = {"BRIDGE_SUBJECT_PREFIX": "team.tasks", "BRIDGE_VCENTERS__LAB__URL": "nonsense"}
    settings = load_client_settings(given, env_file=tmp_path / ".env")
    assert settings.nats == NatsSettings(urls=("nats://a", "nats://b"))
    assert settings.subject_prefix == "team.tasks"


def test_mistakes_of_a_client_are_told_all_at_once_and_without_secrets() -> None:
    with pytest.raises(CannotStart) as refused:
        load_client_settings({"BRIDGE_NATS_URL": "x@y", "BRIDGE_NATS_USER": "u", "BRIDGE_SUBJECT_PREFIX": "a b"})
    assert [line.partition(":")[0] for line in refused.value.lines] == [
        "BRIDGE_NATS_PASSWORD",
        "BRIDGE_NATS_URL",
        "BRIDGE_SUBJECT_PREFIX",
    ]
    assert refused.value.exit_code == 2
    assert "x@y" not in str(refused.value)
