"""The examples in README.md and docs/, found in the text and run as written, against the real thing.

Only the address of NATS differs: what is at 127.0.0.1:4222 in the text is on a free port here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from lab import PASSWORD, PREFIX, USERNAME, Lab
from task_bridge.simulator import scenarios
from validity import validator

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/consumers.md", "docs/follows.md", "docs/recipes.md", "examples/README.md")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
TASK = "52f9f1b0-160a-25fe-fd1e-e7526df80e0d:com.vmware.esx.settings.clusters.software"


class Example(NamedTuple):
    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:40]}"


def examples(*languages: str) -> list[Example]:
    found = [Example(page, *block) for page in PAGES for block in _BLOCK.findall((ROOT / page).read_text())]
    return [example for example in found if example.language in languages]


def commands() -> list[Example]:
    """Those of users that end. What sets up and tests the repository itself is what CI runs."""
    elsewhere = r"^(make|cp|govc)|events --follow"  # tests/vcsim/test_recipes.py
    return [example for example in examples("sh") if not re.search(elsewhere, example.text, re.M)]


class Ready(NamedTuple):
    """A bridge with a task that succeeds after a while, one that has ended, and what the examples read of both."""

    lab: Lab
    environment: dict[str, str]


@pytest.fixture
async def ready(lab: Lab) -> AsyncIterator[Ready]:
    lab.vcenter.next_scripts.default = scenarios.succeeds(after_s=0.5)
    async with lab.bridge():
        await lab.listen()
        large = lab.vcenter.create(scenarios.large_result(400_000, after_s=0.1))
        await lab.publish(large)
        session = await asyncio.to_thread(
            lambda: httpx.post(f"{lab.vcenter_url}/api/session", auth=(USERNAME, PASSWORD), trust_env=False).json()
        )
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BRIDGE_NATS_URL": lab.server.url,
            "VCENTER": lab.vcenter_url,
            "VCENTER_LOGIN": f"{USERNAME}:{PASSWORD}",
            "SESSION": session,
            "TASK": lab.vcenter.create(scenarios.succeeds(after_s=0.8)),
            "EVENT": json.dumps(await lab.ended(large)),
        }
        yield Ready(lab, environment)


async def run(words: list[str], environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *words, env=environment, cwd=ROOT, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(50):
        out, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (0, False), (out + err).decode()
    return out.decode()


def programs() -> list[Example]:
    return [example for example in examples("python") if "PowerOnVM_Task" not in example.text]  # as above


@pytest.mark.parametrize("example", programs(), ids=str)
async def test_a_python_example_runs_as_written(ready: Ready, example: Example) -> None:
    text = example.text.replace("nats://127.0.0.1:4222", ready.lab.server.url)
    assert await run([sys.executable, "-W", "error", "-c", text], ready.environment)


@pytest.mark.parametrize("example", commands(), ids=str)
async def test_a_shell_example_runs_as_written(ready: Ready, example: Example) -> None:
    forever = {"TASK": ready.lab.vcenter.create(scenarios.runs_forever())} if "unwatch" in example.text else {}
    environment = ready.environment | forever
    await ready.lab.ask("watch", environment["TASK"])
    assert await run(["bash", "-euo", "pipefail", "-c", example.text], environment)


def _json(example: Example) -> Any:
    return json.loads(example.text)


def test_there_are_examples_of_each_sort() -> None:
    assert len(examples("python")) >= 3
    assert len(commands()) >= 4
    assert len(examples("json")) >= 3


def requests(key: str) -> list[Example]:
    return [one for one in examples("json") if key in _json(one)]


def events(kind: str) -> list[Example]:
    return [one for one in examples("json") if f".{kind}." in _json(one).get("type", "")]


@pytest.mark.parametrize("example", requests("name"), ids=str)
async def test_a_request_to_follow_in_the_pages_is_taken(lab: Lab, example: Example) -> None:
    request = _json(example)
    assert validator("request", "FollowRequest").is_valid(request)
    async with lab.bridge():
        reply = await lab.ask("follow", request)
        assert reply["outcome"] == "accepted"
        assert reply["name"] == request["name"]
        for key in ("since", "labels"):
            assert reply["follow"][key] == request[key]
        assert reply["follow"]["services"] == sorted(request["services"])


@pytest.mark.parametrize("example", events("follow"), ids=str)
async def test_an_event_of_a_follow_in_the_pages_looks_like_one(lab: Lab, example: Example) -> None:
    shown = _json(example)
    async with lab.bridge():
        await lab.listen()
        news = await lab.client.subscribe(f"{PREFIX}.follows.>")
        await lab.ask("follow", {"name": shown["data"]["name"]})
        real = json.loads((await news.next_msg(timeout=20)).data)
    shown["data"].pop("…", None)
    assert shown.keys() <= real.keys()
    assert shown["data"].keys() <= real["data"].keys()
    assert shown["id"].endswith(f"/{shown['data']['sequence']}")


@pytest.mark.parametrize("example", requests("task"), ids=str)
async def test_a_request_in_the_pages_is_taken(lab: Lab, example: Example) -> None:
    request = _json(example)
    assert validator("request").is_valid(request)
    lab.vcenter.create(scenarios.runs_forever(), id=request["task"])
    async with lab.bridge():
        reply = await lab.ask("watch", request)
        assert reply["outcome"] == "accepted"
        assert reply["watch"]["labels"] == request["labels"]
        assert reply["events"] == f"{PREFIX}.events.lab.{TASK.replace('.', '%2E')}.>"


@pytest.mark.parametrize("example", events("task"), ids=str)
async def test_an_event_in_the_pages_looks_like_one(lab: Lab, example: Example) -> None:
    shown = _json(example)
    task = lab.vcenter.create(scenarios.succeeds(after_s=0.3))
    async with lab.bridge():
        await lab.listen()
        await lab.publish(task)
        real = await lab.ended(task)
    shown["data"].pop("…", None)
    assert shown.keys() <= real.keys()
    assert shown["data"].keys() <= real["data"].keys()
    for key in ("specversion", "type", "outcome"):
        assert shown[key] == real[key]
    for key in ("kind", "final", "status"):
        assert shown["data"][key] == real["data"][key]
    assert shown["id"].endswith(f"/{shown['data']['sequence']}")


def test_the_paths_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| to change | look in |") :]
    for name in re.findall(r"`([\w./]+[./]\w*)`", table):
        assert any((ROOT / folder / name).exists() for folder in ("", "service/task_bridge")), name
