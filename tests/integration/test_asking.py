"""The commands that ask, as a user meets them: several ids, forms of output, reasons, counts, contexts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

from integration.test_client_commands import Shell
from lab import Lab, as_user, guarded, until
from screen import show
from task_bridge.simulator import SimulatedTarget, scenarios
from task_bridge.simulator.script import std_error


@pytest.fixture
def shell(lab: Lab, tmp_path: Path) -> Shell:
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return Shell(lab, directory)


class Terminal:
    """A terminal with so many columns, in which `task-bridge` runs."""

    def __init__(self, lab: Lab, columns: int) -> None:
        self._environment = lab.environment() | {"TERM": "xterm-256color"}
        self._columns = columns
        self._size = struct.pack("HHHH", 24, columns, 0, 0)
        self.sent = b""

    @property
    def text(self) -> str:
        """What was sent, without the codes that place and color it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.sent.decode("utf-8", "replace"))

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.split(r"[\r\n]+", self.text)]

    @property
    def shown(self) -> list[str]:
        """What is to be seen now."""
        return show(self.sent.decode("utf-8", "replace"), self._columns)

    def frame(self, last_line: str) -> list[str] | None:
        """What is to be seen if it is whole and ends with this line."""
        shown = self.shown
        return shown if shown[-1:] == [last_line] else None

    async def run(self, *words: str, **more: str) -> int:
        primary, secondary = pty.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, self._size)
        command = (sys.executable, "-m", "task_bridge", *words)
        process = await asyncio.create_subprocess_exec(
            *command, env=self._environment | more, stdin=secondary, stdout=secondary, stderr=secondary
        )
        os.close(secondary)
        reading = asyncio.create_task(asyncio.to_thread(self._read, primary))
        try:
            async with asyncio.timeout(100):
                await asyncio.shield(reading)
                return await process.wait()
        finally:  # of a test that fails too, or its thread would read without end
            if process.returncode is None:
                process.kill()
            await reading

    def _read(self, terminal: int) -> None:
        with os.fdopen(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO is its end
            while piece := file.read(65_536):
                self.sent += piece


def named(lab: Lab, name: str, number: int) -> SimulatedTarget:
    vm = SimulatedTarget("VirtualMachine", f"vm-{number}")
    lab.vcenter.entities.put(vm, name)
    return vm


@pytest.mark.timeout(150)  # it starts a process beside others that do
@pytest.mark.parametrize("columns", [80, 200])
async def test_watch_lines_its_columns_up_and_counts(lab: Lab, columns: int) -> None:
    good = [lab.vcenter.create(scenarios.succeeds(after_s=60), target=named(lab, f"web{n}", n)) for n in range(3)]
    bad = lab.vcenter.create(scenarios.succeeds(after_s=60), target=named(lab, "db1", 9))
    terminal = Terminal(lab, columns)
    async with lab.bridge():
        watching = asyncio.create_task(terminal.run("watch", *good, bad))
        await until(lambda: all(f"apply {name} " in terminal.text for name in ("web0", "web1", "web2", "db1")), 45)
        lab.vcenter.set(bad, status="FAILED")
        await until(lambda: "3 running, 1 failed" in terminal.text, 45)
        for task in good:
            lab.vcenter.set(task, status="SUCCEEDED")
        code = await watching
    assert code == 1
    assert terminal.lines[-2:] == ["4 tasks: 3 succeeded, 1 failed.", ""]
    rows = [line for line in terminal.lines if "RUNNING" in line and "%" in line]
    assert {line.index("RUNNING") for line in rows} == {rows[0].index("RUNNING")}
    assert max(map(len, rows)) <= columns
    assert not any("…%" in line or re.search(r"\d…", line) for line in rows)
    assert any(line.startswith("apply web1 ") for line in rows)
    for task, word in ((good[0], "completed.succeeded"), (bad, "completed.failed")):
        assert any(line.startswith(word) and line.endswith(task) for line in terminal.lines)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("more", [{}, ASCII], ids=["utf-8", "ascii"])
async def test_long_names_in_any_script_leave_a_row_a_task(lab: Lab, more: dict[str, str]) -> None:
    names = ["production-web-frontend-01", "production-web-frontend-02", "本番-ウェブ-フロントエンド-01"]
    tasks = [
        lab.vcenter.create(scenarios.succeeds(after_s=60), target=named(lab, name, number))
        for number, name in enumerate(names)
    ]
    terminal = Terminal(lab, 80)
    async with lab.bridge():
        watching = asyncio.create_task(terminal.run("watch", *tasks, **more))
        await until(lambda: sum(bool(re.search(r"-0[12] .*RUNNING", line)) for line in terminal.shown) == 3, 45)
        lab.vcenter.set(tasks[1], status="BLOCKED")
        frame = await until(lambda: terminal.frame("2 running, 1 blocked"), 45)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        assert await watching == 0
    rows = [line for line in frame if "%" in line]
    assert len(rows) == len(frame) - 1 == 3, frame
    assert ("BLOCKED" in rows[0], "frontend-02 " in rows[0]) == (True, True)
    assert sum("frontend-01 " in row for row in rows) == 1
    assert len({cell_len(row.partition(" %")[0]) for row in rows}) == 1
    assert all(task in "".join(terminal.shown) for task in tasks)
    assert "frontend-01  " in "".join(terminal.shown)


@pytest.mark.timeout(150)
async def test_a_nats_that_is_away_meanwhile_leaves_one_line_above_the_tasks(lab: Lab) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(2)]
    terminal = Terminal(lab, 80)
    async with lab.bridge():
        watching = asyncio.create_task(terminal.run("watch", *tasks))
        await until(lambda: "2 running" in terminal.text, 45)
        lab.server.stop()
        frame = await until(lambda: terminal.frame("2 running") if "is lost" in terminal.text else None, 20)
        lab.server.start()
        await until(lambda: "NATS is back" in terminal.text, 20)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        assert await watching == 0
    assert frame[0] == "The connection to NATS is lost; waiting for it."
    assert [line[:6] for line in frame[1:3]] == ["apply "] * 2
    assert not any(line.startswith("apply ") for line in [*frame[3:], *terminal.shown])


async def test_all_messages_of_a_failure_are_shown(lab: Lab, shell: Shell) -> None:
    messages = [
        {"id": str(n), "default_message": text, "args": []} for n, text in enumerate(("It broke.", "The disk."))
    ]
    error = std_error("ERROR", *messages)
    task = lab.vcenter.create(scenarios.fails_with_error(0.1, error), target=named(lab, "web01", 7))
    terminal = Terminal(lab, 200)
    async with lab.bridge():
        followed = await shell.run("watch", task)
        await terminal.run("watch", task)
        got, wide, stored = [
            await shell.run(*words) for words in (["get", task], ["get", "-o", "wide", task], ["events"])
        ]
    assert [line.strip() for line in terminal.shown[-2:]] == ["It broke.", "The disk."]
    for shown in (followed, got, wide, stored):
        assert "It broke. / The disk." in shown.out
    assert " apply on web01: It broke." in stored.out


async def test_get_says_what_a_blocked_task_asks(lab: Lab, shell: Shell) -> None:
    task, other = (lab.vcenter.create(scenarios.succeeds(after_s=60)) for _ in range(2))
    lab.vcenter.set(task, status="BLOCKED", progress={"message": {"default_message": "Was it moved or copied?"}})
    async with lab.bridge():
        await lab.listen()
        for one in (task, other):
            await lab.ask("watch", one)
        await until(lambda: lab.heard(task) and lab.heard(other))
        got = await shell.run("get", task, other)
    assert got.out.splitlines()[3:] == [f"{task}: Was it moved or copied?"]


async def test_watch_says_why_nothing_comes(lab: Lab, shell: Shell) -> None:
    lab.vcenter.options.password = "another"
    terminal = Terminal(lab, 200)
    async with lab.bridge():
        code = await terminal.run("watch", "a:b", "--timeout", "4s")
        ended = await shell.run("watch", "a:c", "--timeout", "3s")
    assert (code, ended.code) == (3, 3)
    assert "vCenter lab is refused since" in terminal.text
    assert "vCenter lab is refused since" in ended.err
    assert "refuses the user name or the password" in ended.err
    assert "Tried again when they change" in ended.out  # the ending has it too


async def test_watch_says_that_nobody_polls_while_no_bridge_is_there(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        process = await shell.start("watch", lab.vcenter.create(scenarios.runs_forever()))
        await asyncio.wait_for(process.stdout.readline(), 10)
    line = (await asyncio.wait_for(process.stderr.readline(), 15)).decode()
    process.terminate()
    await process.communicate()
    assert "No bridge answers" in line


async def test_watch_detaches(lab: Lab, shell: Shell) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(2)]
    async with lab.bridge():
        ended = await shell.run("watch", *tasks, "--detach", "--stalled-after", "5m", "--partial-results")
        again = await shell.run("watch", tasks[0], "[x]", "--detach", "--json")
        watching = [one["task"] for one in (await lab.ask("list"))["watches"]]
    assert (ended.code, ended.err, watching) == (0, "", tasks)
    assert [line.split(":")[-1].split(",")[0] for line in ended.out.splitlines()] == [" accepted"] * 2
    assert (again.code, again.json[0]["outcome"]) == (2, "already_watching")
    assert "one task id" in again.err


async def test_several_ids_and_all_forms(lab: Lab, shell: Shell) -> None:
    classic = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
    other = lab.vcenter.create(scenarios.fails_with_error(0.1))
    async with lab.bridge():
        await lab.listen()
        await lab.ask("watch", {"task": classic, "labels": {"a": "b"}})
        await lab.ask("watch", other)
        await lab.ended(other)
        both = await shell.run("get", f"Task-{classic}", other)
        asked = (["get", classic, "x:y"], ["get", "-o", "name", classic, other], ["get", "-o", "yaml", classic])
        half, names, yaml = await asyncio.gather(*(shell.run(*words) for words in asked))
        wide = await shell.run("get", "-o", "wide", other)
        forms = ("name", "yaml", "wide")
        listed, listed_yaml, listed_wide = await asyncio.gather(*(shell.run("list", "-o", form) for form in forms))
        unwatched = await shell.run("unwatch", f"'vim.Task:{classic}'", other)
        nothing = await shell.run("list")
    header, first, second, problem = both.out.splitlines()
    assert header.split() == ["VCENTER", "STATUS", "PROGRESS", "AGE", "TARGET", "TASK"]
    assert (first.split()[1], second.split()[1]) == ("RUNNING", "completed.failed")
    assert problem.startswith(f"{other}: ")
    assert (half.code, len(half.out.splitlines())) == (1, 2)
    assert "neither watched" in half.err
    assert names.out.splitlines() == [classic, other]
    assert f'task: "{classic}"' in yaml.out
    assert "messages" in wide.out
    assert listed.out.splitlines() == [classic]
    assert listed_yaml.out.startswith("watches:\n  -\n    vcenter: lab\n")
    assert "a=b" in listed_wide.out
    assert (unwatched.code, unwatched.out.splitlines()[0].split()[0]) == (1, classic)
    assert "had ended already" in unwatched.err
    assert nothing.out == "Nothing is watched.\n"


async def test_list_is_limited(lab: Lab, shell: Shell) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(4)]
    async with lab.bridge():
        for task in tasks:
            await lab.ask("watch", task)
        limited = await shell.run("list", "--limit", "3")
        as_json = await shell.run("list", "--limit", "3", "--json")
    assert [line.split()[-1] for line in limited.out.splitlines()] == ["TASK", *tasks[:3]]
    assert limited.err == "… and 1 more; --limit shows more of them.\n"
    assert [one["task"] for one in as_json.json[0]["watches"]] == tasks[:3]


async def test_events_refuses_what_can_match_nothing(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        kind, ending, vcenter = await asyncio.gather(
            shell.run("events", "--kind", "completd"),
            shell.run("events", "--kind", "completed.lost"),
            shell.run("events", "--vcenter", "lap"),
        )
    assert (kind.code, ending.code, vcenter.code) == (2, 2, 1)
    assert "completed.succeeded" in " ".join(kind.err.split())
    assert vcenter.err == "No vCenter named 'lap' is configured; it must be one of lab.\n"


async def test_events_says_that_there_are_none_and_refuses_the_future(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        nothing, future, nonsense = await asyncio.gather(
            shell.run("events", "--task", "task-9", "--json"),
            shell.run("events", "--since", "2096-01-01T00:00:00Z"),
            shell.run("events", "--since", "yesterday"),
        )
    assert nothing == (0, "", "No stored event matches.\n")
    assert (future.code, nonsense.code) == (2, 2)
    assert "is in the future" in " ".join(future.err.split())
    assert "neither a time like" in " ".join(nonsense.err.split())


async def test_a_refusal_among_several_names_its_task(lab: Lab, shell: Shell) -> None:
    async with lab.bridge(allow_cancel=True):
        canceled, unknown = await asyncio.gather(
            shell.run("cancel", "a:b", "haTask-7"), shell.run("list", "--vcenter", "lap")
        )
    first, second = canceled.err.splitlines()
    assert ("'a:b'" in first, second.partition(" ")[0]) == (True, "haTask-7:")
    assert unknown.err == "No vCenter named 'lap' is configured; it must be one of lab.\n"


@pytest.mark.parametrize(
    "words", [["watch"], ["watch", "--json"], ["events"], ["events", "--json"], ["list"]], ids=" ".join
)
async def test_a_pipe_that_nobody_reads_is_no_failed_task(lab: Lab, shell: Shell, words: list[str]) -> None:
    task = lab.vcenter.create(scenarios.succeeds_at_once())
    async with lab.bridge():
        await shell.run("watch", task)
        reader, writer = os.pipe()
        os.close(reader)
        process = await shell.start(*words, *([task] if "watch" in words else []), stdout=writer)
        os.close(writer)
        _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("words", [["--version"], ["events"], ["list"]], ids=" ".join)
async def test_output_that_can_not_be_written_is_one_line(lab: Lab, shell: Shell, words: list[str]) -> None:
    task = lab.vcenter.create(scenarios.succeeds_at_once())
    async with lab.bridge():
        await shell.run("watch", task)
        full = os.open("/dev/full", os.O_WRONLY)
        process = await shell.start(*words, stdout=full)
        os.close(full)
        _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"Standard output can't be written: No space left on device.\n")


async def test_a_closed_standard_output_ends_no_command(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        await lab.ask("watch", "a:b")
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "task_bridge", "list"),
            env=lab.environment(),
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


async def test_events_prints_the_newest_and_goes_on(lab: Lab, shell: Shell) -> None:
    async with lab.bridge():
        await lab.listen()
        for _ in range(3):
            task = lab.vcenter.create(scenarios.succeeds_at_once())
            await lab.publish(task)
            await lab.ended(task)
        stored = [event["id"] for event in await lab.events()]
        newest = await shell.run("events", "--tail", "2", "--json")
        following = await shell.start("events", "--tail", "1", "--follow", "--json")
        first = json.loads(await asyncio.wait_for(following.stdout.readline(), 15))
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        then = json.loads(await asyncio.wait_for(following.stdout.readline(), 15))
        following.terminate()
        await following.communicate()
    assert [event["id"] for event in newest.json] == stored[-2:]
    assert (first["id"], then["subject"]) == (stored[-1], task)


async def test_times_on_a_terminal_have_a_zone(lab: Lab) -> None:
    terminal = Terminal(lab, 80)
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await lab.ended(task)
        assert await terminal.run("events") == 0
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ watching ", terminal.text)
    assert task in terminal.text.replace("\r\n", "")


async def test_no_encoding_ends_a_command(lab: Lab, shell: Shell) -> None:
    task = lab.vcenter.create(scenarios.succeeds(0.3), target=named(lab, "wéb-日本", 7))
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    terminal = Terminal(lab, 80)
    async with lab.bridge():
        ended = await shell.run("watch", task, **ascii_only)
        shown = await terminal.run("watch", task, **ascii_only)
        listed = await shell.run("events", "--json", **ascii_only)
    assert (ended.code, ended.err, shown) == (0, "", 0)
    assert any(event["data"]["target"]["name"] == "wéb-日本" for event in listed.json)


async def test_a_context_of_the_nats_cli_chooses_the_nats(lab: Lab, shell: Shell, tmp_path: Path) -> None:
    contexts = tmp_path / "config" / "nats" / "context"
    contexts.mkdir(parents=True)
    with guarded(tmp_path, 'publish: ">", subscribe: ">"') as server:
        contexts.joinpath("lab.json").write_text(json.dumps({"url": server.url, "user": "u", "password": "p"}))
        (tmp_path / "elsewhere" / ".env").write_text("BRIDGE_NATS_TOKEN=of-another-server\n")
        where = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "BRIDGE_NATS_URL": "nats://127.0.0.1:9"}
        by_context = await shell.run("list", "--context", "lab", **where)
        by_url = await shell.run("list", "--nats-url", server.url, **as_user("u", server), BRIDGE_NATS_TOKEN="")
        unknown = await shell.run("list", "--context", "nix", **where)
    assert by_context.err == "No bridge answers on vcenter.tasks.api.list.\n"
    assert by_context.code == 4
    assert by_url == by_context
    assert (unknown.code, "there is no context 'nix'" in " ".join(unknown.err.split())) == (2, True)


@pytest.mark.parametrize("words", [["-h"], ["watch", "-h"], ["list", "-h"], ["check", "-h"], ["serve", "-h"]])
async def test_every_command_has_help_by_h(shell: Shell, words: list[str]) -> None:
    ended = await shell.run(*words)
    assert (ended.code, "Usage: " in ended.out, ended.err) == (0, True, "")


async def test_the_details_of_an_error_answer_are_printed(lab: Lab, shell: Shell) -> None:
    lab_settings = lab.vcenter_settings()
    async with lab.bridge(vcenters={"lab": lab_settings, "other": lab_settings}):
        ended = await shell.run("get", "a:b")
    assert ended.code == 1
    assert "vcenter: name one of lab, other" in ended.err
