"""The programs in examples/, as they are, against a real nats-server, the simulated vCenter and a bridge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import nats.js.errors
import pytest
from nats.js.api import DeliverPolicy

from compiled import COMPILED, compile_example
from lab import PASSWORD, USERNAME, Lab, until
from node import node_with_packages_of
from task_bridge.simulator import scenarios

EXAMPLES = Path(__file__).parents[2] / "examples"
LANGUAGES = ["python", "node", *COMPILED]
pytestmark = pytest.mark.timeout(600)  # packages and compilers come first


def command(language: str, name: str) -> list[str]:
    """How a program of examples/ is started. Skips where its language isn't here."""
    if language == "python":
        return [sys.executable, str(EXAMPLES / f"python/{name}.py")]
    if language == "node":
        return [node_with_packages_of(EXAMPLES / "node"), str(EXAMPLES / f"node/{name}.mjs")]
    if language in COMPILED:
        return compile_example(language, name)
    if missing := [tool for tool in ("jq", "curl") if shutil.which(tool) is None]:
        pytest.skip(f"there is no {missing[0]} here")
    return ["sh", str(EXAMPLES / f"shell/{name}.sh")]


def environment(lab: Lab, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "BRIDGE_NATS_URL": lab.server.url, **more}


async def started(words: list[str], directory: Path, env: dict[str, str]) -> Process:
    return await asyncio.create_subprocess_exec(
        *words, cwd=directory, env=env, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


async def ended(process: Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def _failing() -> Any:
    return scenarios.fails_with_error(after_s=0.3)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_waiting_for_a_task_tells_how_it_ended(lab: Lab, tmp_path: Path, language: str) -> None:
    words = command(language, "wait")
    tasks = {
        lab.vcenter.create(scenarios.succeeds(after_s=1.0)): 0,
        lab.vcenter.create(scenarios.succeeds_at_once()): 0,
        lab.vcenter.create(_failing()): 1,
        "no-such-task": 3,
        "a/b": 2,
    }
    async with lab.bridge():
        processes = [await started([*words, task], tmp_path, environment(lab)) for task in tasks]
        told = await asyncio.gather(*map(ended, processes))
    assert [code for code, _, _ in told] == list(tasks.values()), told
    for task, (code, out, err) in zip(tasks, told, strict=True):
        if task == "a/b":
            assert "invalid_request" in err
        else:
            event = json.loads(out)
            assert (event["subject"], event["data"]["final"]) == (task, True)
            assert (event["outcome"] == "succeeded") == (code == 0)


@pytest.mark.parametrize(
    ("fate", "ending", "said"),
    [(scenarios.succeeds(after_s=0.5), 0, "The task succeeded."), (_failing(), 1, "The task failed: ")],
    ids=["succeeds", "fails"],
)
async def test_a_shell_goes_on_by_how_the_task_ended(
    lab: Lab, tmp_path: Path, fate: Any, ending: int, said: str
) -> None:
    words = command("shell", "wait")
    lab.vcenter.next_scripts.queue.append(fate)
    session = await asyncio.to_thread(_session, lab)
    async with lab.bridge():
        process = await started(words, tmp_path, environment(lab, VCENTER=lab.vcenter_url, SESSION=session))
        code, out, err = await ended(process)
    assert (code, out[: len(said)]) == (ending, said), err


def _session(lab: Lab) -> str:
    answer = httpx.post(f"{lab.vcenter_url}/api/session", auth=(USERNAME, PASSWORD), trust_env=False)
    return str(answer.json())


class Workflows:
    """An HTTP server that starts workflows: it refuses the first request, and keeps the others."""

    def __init__(self) -> None:
        self.refused = 0
        self.started: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        if self.refused:
            self.started.append(body)
            self.keys.append(headers["idempotency-key"])
        status = "200 OK" if self.refused else "500 Not Yet"
        self.refused += 1
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def workflows() -> AsyncIterator[tuple[Workflows, str]]:
    taken = Workflows()
    server = await asyncio.start_server(taken.take, "127.0.0.1", 0)
    async with server:
        yield taken, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@asynccontextmanager
async def working(words: list[str], directory: Path, env: dict[str, str]) -> AsyncIterator[Process]:
    """A worker that is killed at the end."""
    process = await started(words, directory, env)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_worker_starts_one_workflow_an_ending_over_refusals_and_a_kill(
    lab: Lab, tmp_path: Path, language: str
) -> None:
    words = command(language, "worker")
    async with lab.bridge(), workflows() as (taken, url):
        env = environment(lab, WORKFLOW_URL=url)
        await lab.listen()
        await _completed(lab)  # before the first start, so no worker's
        async with working(words, tmp_path, env):
            await _durable(lab)
            tasks = [await _completed(lab), await _completed(lab)]
            await until(lambda: len(taken.started) == 2, 30)
            tasks.append(await _completed(lab, "a-task-that-nobody-knows"))
            await until(lambda: len(taken.started) == 3, 30)
            await _acked(lab)
        await _begin_anew(lab)  # all events come again, and none that was handled starts anything again
        async with working(words, tmp_path, env) as process:
            await _said_of(process, 4)
            tasks.append(await _completed(lab))
            await until(lambda: len(taken.started) >= 5, 30)
    tasks.insert(0, taken.started[3]["subject"])  # the one before the first start, since the durable began anew
    assert sorted(event["subject"] for event in taken.started) == sorted(tasks)
    assert taken.keys == [event["id"] for event in taken.started]


async def _completed(lab: Lab, task: str | None = None) -> str:
    """A task that has ended: one that succeeded, or one that vCenter doesn't know."""
    task = task or lab.vcenter.create(scenarios.succeeds_at_once())
    await lab.publish(task)
    await lab.ended(task)
    return task


async def _acked(lab: Lab) -> None:
    """The acks of what was worked on have arrived."""
    async with asyncio.timeout(20):
        while (await lab.js.consumer_info("VCENTER_TASKS_EVENTS", "workflows")).num_ack_pending:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _durable(lab: Lab) -> Any:
    """The durable of the workers, as soon as it is there."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                return (await lab.js.consumer_info("VCENTER_TASKS_EVENTS", "workflows")).config
            await asyncio.sleep(0.05)


async def _begin_anew(lab: Lab) -> None:
    config = await _durable(lab)
    assert (config.deliver_policy, config.max_deliver) == (DeliverPolicy.NEW, 1000)
    await lab.js.delete_consumer("VCENTER_TASKS_EVENTS", "workflows")
    await lab.js.add_consumer("VCENTER_TASKS_EVENTS", config.evolve(deliver_policy=DeliverPolicy.ALL))


async def _said_of(process: Process, count: int) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        for _ in range(count):
            assert await process.stdout.readline()


async def test_a_worker_in_shell_runs_its_command_once_an_ending(lab: Lab, tmp_path: Path) -> None:
    words = [*command("shell", "worker"), "sh", "-c", "cat >>work.jsonl"]
    work: Callable[[], list[str]] = lambda: (tmp_path / "work.jsonl").read_text().splitlines()  # noqa: E731
    (tmp_path / "work.jsonl").touch()
    async with lab.bridge():
        await lab.listen()
        async with working(words, tmp_path, environment(lab)):
            await until(lambda: (tmp_path / "done" / ".first").exists())
            tasks = [await _completed(lab), await _completed(lab, "a-task-that-nobody-knows")]
            await until(lambda: len(work()) == 2)
            await until(lambda: len(list((tmp_path / "done").glob("*-*"))) == 2)
        async with working(words, tmp_path, environment(lab)):
            tasks.append(await _completed(lab))
            await until(lambda: len(work()) >= 3)
    assert [json.loads(line)["subject"] for line in work()] == tasks
