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

from integration.test_client_commands import Shell
from lab import Lab, as_user, guarded, until
from task_bridge.simulator import SimulatedTarget, scenarios


@pytest.fixture
def shell(lab: Lab, tmp_path: Path) -> Shell:
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return Shell(lab, directory)


class Terminal:
    """A terminal with so many columns, in which `task-bridge` runs."""

    def __init__(self, lab: Lab, columns: int) -> None:
        self._environment = lab.environment() | {"TERM": "xterm-256color"}
        self._size = struct.pack("HHHH", 24, columns, 0, 0)
        self.sent = b""

    @property
    def text(self) -> str:
        """What was sent, without the codes that place and color it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.sent.decode("utf-8", "replace"))

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.split(r"[\r\n]+", self.text)]

    async def run(self, *words: str, **more: str) -> int:
        primary, secondary = pty.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, self._size)
        command = (sys.executable, "-m", "task_bridge", *words)
        process = await asyncio.create_subprocess_exec(
            *command, env=self._environment | more, stdin=secondary, stdout=secondary, stderr=secondary
        )
        os.close(secondary)
        async with asyncio.timeout(100):
            await asyncio.to_thread(self._read, primary)
            return await process.wait()

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
    good = [lab.vcenter.create(scenarios.runs_forever(), target=named(lab, f"web{n}", n)) for n in range(3)]
    bad = lab.vcenter.create(scenarios.runs_forever(), target=named(lab, "db1", 9))
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
    assert "No vCenter named 'lap' is configured; there is lab." in vcenter.err


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
