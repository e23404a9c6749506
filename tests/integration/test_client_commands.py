"""The commands that ask, as processes: their exit codes, what machines read of them, and what people see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest

from lab import EVENTS, Lab, NatsServer, as_user, guarded, until
from task_bridge.simulator import scenarios
from task_bridge.simulator.script import std_error


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs `task-bridge` with the lab's environment in a directory of its own."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._environment = lab.environment()
        self._directory = directory
        self.screen = b""
        """What the terminal was sent so far."""

    async def start(
        self,
        *words: str,
        stdin: int = asyncio.subprocess.DEVNULL,
        stdout: int = asyncio.subprocess.PIPE,
        **more: str,
    ) -> Any:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "task_bridge", *words),
            env=self._environment | more,
            cwd=self._directory,
            stdin=stdin,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            # Tests that run in the background have Ctrl-C ignored, and so would their children.
            preexec_fn=_heed_ctrl_c,
        )

    async def run(self, *words: str, given: str | None = None, **more: str) -> Ended:
        stdin = asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE
        process = await self.start(*words, stdin=stdin, stdout=asyncio.subprocess.PIPE, **more)
        return await self.ended(process, given)

    async def ended(self, process: Any, given: str | None = None) -> Ended:
        async with asyncio.timeout(30):
            out, err = await process.communicate(None if given is None else given.encode())
        return Ended(process.returncode, out.decode(), err.decode())

    async def on_terminal(self, *words: str, **more: str) -> tuple[int, str]:
        """Exit code and all that a terminal of 80 columns was sent."""
        primary, secondary = pty.openpty()
        environment = self._environment | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | more
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "task_bridge", *words),
            env=environment,
            cwd=self._directory,
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
        )
        os.close(secondary)
        reading = asyncio.create_task(asyncio.to_thread(self._read, primary))
        try:
            async with asyncio.timeout(30):
                await asyncio.shield(reading)
                return await process.wait(), self.screen.decode()
        finally:  # of a test that fails too, or its thread would read without end
            if process.returncode is None:
                process.kill()
            await reading

    def _read(self, terminal: int) -> None:
        self.screen = b""
        with os.fdopen(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO is its end
            while piece := file.read(65_536):
                self.screen += piece


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def shell(lab: Lab, tmp_path: Path) -> Shell:
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return Shell(lab, directory)


async def test_watch_prints_a_line_an_event_and_exits_0_when_all_succeeded(lab: Lab, shell: Shell) -> None:
    tasks = [lab.vcenter.create(scenarios.succeeds(after_s=0.5)), lab.vcenter.create(scenarios.succeeds_at_once())]
    async with lab.bridge():
        ended = await shell.run("watch", *tasks, "--label", "workflow=patch-42", "--label", "try=1")
        events = await lab.events()
    lines = ended.out.splitlines()
    assert (ended.code, ended.err, len(lines)) == (0, "", len(events))
    for task in tasks:
        assert any(f" lab {task} watching" in line for line in lines)
        assert any(f" lab {task} completed.succeeded SUCCEEDED" in line for line in lines)
    assert {json.dumps(event["data"]["watch"]["labels"]) for event in events} == {
        '{"workflow": "patch-42", "try": "1"}'
    }


async def test_watch_reads_ids_from_standard_input_and_prints_the_stored_events_as_json(lab: Lab, shell: Shell) -> None:
    tasks = [lab.vcenter.create(scenarios.succeeds(after_s=0.3)) for _ in range(2)]
    async with lab.bridge():
        ended = await shell.run("watch", "--json", given=f'{tasks[0]}\n\n"{tasks[1]}"\n{tasks[0]}\n')
        stored = await lab.events()
    assert (ended.code, ended.err) == (0, "")
    for task in tasks:  # the events of each task come in order
        shown = [event for event in ended.json if event["subject"] == task]
        assert shown == [event for event in stored if event["subject"] == task]
    assert len(ended.json) == len(stored)
    assert {event["subject"] for event in stored} == set(tasks)


@pytest.mark.parametrize(
    ("which", "code"),
    [
        ("good bad lost", 1),
        ("good canceled", 1),
        ("good lost", 3),
        ("lost", 3),
        ("good refused", 2),
        ("bad refused", 1),
    ],
)
async def test_the_exit_code_of_watch_tells_the_worst(lab: Lab, shell: Shell, which: str, code: int) -> None:
    ids = {
        "good": lab.vcenter.create(scenarios.succeeds_at_once()),
        "bad": lab.vcenter.create(scenarios.fails_with_error(after_s=0.1)),
        "canceled": lab.vcenter.create(scenarios.canceled(after_s=0.1)),
        "lost": "no-such-task",
        "refused": "a/b",
    }
    async with lab.bridge(not_found_grace_s=0.2):
        ended = await shell.run("watch", *(ids[name] for name in which.split()))
    assert ended.code == code
    assert ("must not contain" in ended.err) == ("refused" in which)


async def test_a_byte_order_mark_before_the_ids_is_no_part_of_them(lab: Lab, shell: Shell) -> None:
    task = lab.vcenter.create(scenarios.succeeds_at_once())
    async with lab.bridge():
        ended = await shell.run("watch", "--json", given=f"\N{BYTE ORDER MARK}{task}\n")
    assert (ended.code, ended.err) == (0, "")
    assert {event["subject"] for event in ended.json} == {task}


async def test_watch_tells_that_the_values_of_an_earlier_request_are_in_force(lab: Lab, shell: Shell) -> None:
    first, second = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(2))
    async with lab.bridge():
        await lab.ask("watch", {"task": first, "labels": {"workflow": "patch-42"}})
        timeout_at = (await lab.ask("watch", {"task": second, "timeout": "1h"}))["watch"]["timeout_at"]
        asking = await shell.start("watch", first, second, "--timeout", "5m", "--label", "a=b")
        silent = await shell.start("watch", first)
        async with asyncio.timeout(20):
            told = [(await asking.stderr.readline()).decode() for _ in range(2)]
            await silent.stdout.readline()
        silent.send_signal(signal.SIGINT)
        asking.send_signal(signal.SIGINT)
        ends = await asyncio.gather(shell.ended(silent), shell.ended(asking))
    assert any(line.endswith("asked for first: no timeout, labels workflow=patch-42.\n") for line in told)
    assert any(line.endswith(f"asked for first: timeout at {timeout_at}, no labels.\n") for line in told)
    assert ends[0].err == "The watch goes on; task-bridge unwatch ends one.\n"


async def test_watch_with_a_timeout_ends_the_watch_as_abandoned(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        ended = await shell.run("watch", lab.vcenter.create(scenarios.runs_forever()), "--timeout", "500ms", "--json")
    assert (ended.code, ended.json[-1]["outcome"]) == (3, "watch_timed_out")


async def test_ctrl_c_leaves_the_watch_running_and_says_so(lab: Lab, shell: Shell) -> None:
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        process = await shell.start("watch", task)
        assert b"watching" in await asyncio.wait_for(process.stdout.readline(), 10)
        process.send_signal(signal.SIGINT)
        ended = await shell.ended(process)
        assert (await lab.ask("get", task))["watching"]
    assert ended.code == 130
    assert ended.err == "The watch goes on; task-bridge unwatch ends one.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["watch", "a", "--timeout", "soon"],
        ["watch", "a", "--label", "no-value"],
        ["watch"],
        ["events", "--since", "yesterday"],
        ["events", "--kind", "completed.>"],
        ["events", "--vcenter", "*"],
        ["get"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_exits_2(lab: Lab, shell: Shell, words: list[str]) -> None:
    ended = await shell.run(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err


async def test_wrong_settings_exit_2_with_a_line_each(shell: Shell) -> None:
    ended = await shell.run("list", BRIDGE_NATS_URL="http://nats", BRIDGE_SUBJECT_PREFIX="a b")
    assert (ended.code, ended.out) == (2, "")
    assert [line.split(":")[0] for line in ended.err.splitlines()] == ["BRIDGE_NATS_URL", "BRIDGE_SUBJECT_PREFIX"]


@pytest.mark.parametrize("words", [["watch", "a"], ["list"], ["get", "a"], ["unwatch", "a"], ["cancel", "a"]])
async def test_no_bridge_exits_4(lab: Lab, shell: Shell, words: list[str]) -> None:
    ended = await shell.run(*words)
    assert ended == Ended(4, "", f"No bridge answers on vcenter.tasks.api.{words[0]}.\n")


async def test_no_nats_exits_4_within_seconds(lab: Lab, shell: Shell) -> None:
    lab.server.stop()
    asked = await asyncio.gather(*(shell.run(*words) for words in (["watch", "a"], ["events"], ["list", "--json"])))
    for ended in asked:
        assert (ended.code, ended.out) == (4, "")
        assert ended.err.startswith(f"NATS can't be reached at {lab.server.url}: ")
        assert len(ended.err.splitlines()) == 1


async def test_refused_credentials_are_told(lab: Lab, shell: Shell, tmp_path: Path) -> None:
    directory = tmp_path / "guarded"
    directory.mkdir()
    guarded = NatsServer(directory, "--user", "me", "--pass", "right")
    guarded.start()
    who = {"BRIDGE_NATS_URL": guarded.url, "BRIDGE_NATS_USER": "me"}
    try:
        wrong, right = await asyncio.gather(
            shell.run("list", BRIDGE_NATS_PASSWORD="wrong", **who),
            shell.run("list", BRIDGE_NATS_PASSWORD="right", **who),
        )
    finally:
        guarded.stop()
    assert (wrong.code, right.code) == (4, 4)
    assert "Authorization" in wrong.err
    assert "No bridge answers" in right.err


@pytest.mark.parametrize(
    ("permissions", "missing"),
    [
        ('publish: "foo", subscribe: "_INBOX.>"', f'publish to "$JS.API.DIRECT.GET.{EVENTS}"'),
        ('subscribe: {deny: ["_INBOX.>", "_INBOX_u.>"]}', 'subscription to "_inbox.'),
    ],
    ids=["publish", "subscribe"],
)
async def test_events_that_may_not_be_read_end_it_and_the_permission_is_named(
    shell: Shell, tmp_path: Path, permissions: str, missing: str
) -> None:
    with guarded(tmp_path, permissions) as server:
        ended = await shell.run("events", "--follow", **as_user("u", server))
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (4, "", 1)
    assert ended.err.startswith(f"The stream {EVENTS} can't be read: permissions violation for {missing}")


async def test_a_jetstream_that_does_not_answer_ends_events(shell: Shell, tmp_path: Path) -> None:
    directory = tmp_path / "without"
    directory.mkdir()
    server = NatsServer(directory, jetstream=False)
    server.start()
    silent = await nats.connect(server.url, allow_reconnect=False)
    try:
        await silent.subscribe("$JS.API.>")
        await silent.flush()
        ended = await shell.run("events", BRIDGE_NATS_URL=server.url)
    finally:
        await silent.close()
        server.stop()
    assert ended == Ended(4, "", f"The stream {EVENTS} can't be read: JetStream doesn't answer.\n")


async def test_events_prints_what_is_stored_and_goes_on_with_what_comes(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        await lab.listen()
        first = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(first)
        await lab.ended(first)
        stored = await shell.run("events", "--json")
        ended = await shell.run("events", "--kind", "completed", "--task", first, "--vcenter", "lab", "--since", "1h")
        nothing = await shell.run("events", "--kind", "stalled")
        following = await shell.start("events", "--follow", "--json")
        await asyncio.wait_for(following.stdout.readline(), 10)
        second = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1))
        await lab.publish(second)
        heard = await asyncio.wait_for(_line_with(following.stdout, b'"completed","outcome":"failed"'), 10)
        following.send_signal(signal.SIGINT)
        left = await shell.ended(following)
    assert (stored.code, stored.json) == (0, (await lab.events())[:2])
    assert ended.out.split()[1:4] == ["lab", first, "completed.succeeded"]
    assert (nothing.code, nothing.out) == (0, "")
    assert (heard["subject"], left.code, left.err) == (second, 0, "")


async def _line_with(stream: asyncio.StreamReader, part: bytes) -> dict[str, Any]:
    while part not in (line := await stream.readline()):
        assert line
    return json.loads(line)  # type: ignore[no-any-return]


async def test_list_and_get_tell_how_tasks_stand_in_words_and_as_json(lab: Lab, shell: Shell) -> None:
    task, other = lab.vcenter.create(scenarios.runs_forever()), lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge():
        await lab.listen()
        await lab.publish({"task": task, "labels": {"workflow": "patch-42"}})
        await lab.publish(other)
        await until(lambda: lab.heard(task) and lab.heard(other))
        asked = (["list"], ["list", "--json"], ["get", task], ["get", task, "--json"])
        listed, listed_json, got, got_json = await asyncio.gather(*(shell.run(*words) for words in asked))
        labeled = await shell.run("list", "--label", "workflow=patch-42", "--json")
    header, first, second = listed.out.splitlines()
    assert header.split() == ["VCENTER", "STATUS", "PROGRESS", "AGE", "TARGET", "TASK"]
    assert [line.split()[0] for line in (first, second)] == ["lab", "lab"]
    assert [line.endswith(one) for line, one in ((first, task), (second, other))] == [True, True]
    assert "RUNNING  10 %" in first
    assert first.index(task) == second.index(other) == header.index("TASK")
    assert [watch["task"] for watch in listed_json.json[0]["watches"]] == [task, other]
    assert [watch["task"] for watch in labeled.json[0]["watches"]] == [task]
    assert labeled.json[0]["total"] == 1
    assert got.out.splitlines()[1].endswith(task)
    assert "RUNNING  10 %" in got.out
    assert (got_json.json[0]["watching"], got_json.json[0]["task"]) == (True, task)
    assert {(ended.code, ended.err) for ended in (listed, listed_json, got, got_json)} == {(0, "")}


def test_the_shell_completes_commands() -> None:
    program = Path(sys.executable).with_name("task-bridge")
    asked = {"_TASK_BRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": "task-bridge un", "COMP_CWORD": "1"}
    assert subprocess.check_output([program], env=asked, text=True, timeout=20).split() == ["unwatch", "unfollow"]


async def test_unwatch_and_cancel_answer_and_an_error_answer_exits_1(lab: Lab, shell: Shell) -> None:
    task, other = lab.vcenter.create(scenarios.runs_forever()), lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge(allow_cancel=True):
        await lab.ask("watch", task)
        asked = (["unwatch", task], ["cancel", other, "--vcenter", "lab", "--json"], ["get", "nobody-knows-it"])
        unwatched, canceled, unknown = await asyncio.gather(*(shell.run(*words) for words in asked))
        again = await shell.run("unwatch", task, "--json")
    assert (unwatched.code, "the task goes on" in unwatched.out) == (0, True)
    assert (canceled.code, canceled.json[0]["outcome"]) == (0, "cancel_requested")
    assert (unknown.code, unknown.out, "neither watched" in unknown.err) == (1, "", True)
    assert (again.code, again.json[0]["error"]["code"]) == (1, "already_ended")
    assert again.json[0]["last_event"]["data"]["outcome"] == "unwatched"


async def test_a_terminal_shows_bars_that_fit_80_columns_and_how_all_ended(lab: Lab, shell: Shell) -> None:
    good = lab.vcenter.create(scenarios.runs_forever())
    bad = lab.vcenter.create(scenarios.fails_with_error(after_s=0.5))
    async with lab.bridge():
        await lab.listen()
        watching = asyncio.create_task(shell.on_terminal("watch", good, bad))
        await lab.ended(bad)
        await until(lambda: b"RUNNING" in shell.screen)
        lab.vcenter.set(good, status="SUCCEEDED")
        code, shown = await watching
        plain_code, plain = await shell.on_terminal("watch", good, NO_COLOR="1")
    assert (code, plain_code) == (1, 0)
    assert shown.count("━") > 20
    assert "\x1b[31mcompleted.failed" in shown
    assert "completed.succeeded" in shown
    assert "\x1b[32m" not in plain
    assert good in plain
    assert bad in shown


async def test_the_control_characters_of_strangers_are_not_printed(lab: Lab, shell: Shell) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m\nsecond line \u202e"
    error = std_error("INTERNAL_SERVER_ERROR", {"id": "x", "default_message": evil, "args": []})
    task = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1, error=error))
    async with lab.bridge():
        followed = await shell.run("watch", task)
        _, shown = await shell.on_terminal("watch", task)
        _, got = await shell.on_terminal("get", task, NO_COLOR="1")
        refused = await shell.run("watch", "evil\x1b[31m\x07")
    for text in (followed.out, shown, got, refused.err):
        assert "\x1b]0" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
    assert len([line for line in followed.out.splitlines() if "completed.failed" in line]) == 1
    assert "second line" in followed.out
    assert "\x1b[31m" not in refused.err
