"""The log of a process, as whoever collects it sees it. Each runs in a process of its own: logging is global."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

SERVICE = Path(__file__).parents[2] / "service"
START = """
import asyncio, logging, sys, threading, warnings
import structlog
from task_bridge.domain.errors import CannotStart, VCenterUnavailable
from task_bridge.logs import configure
log = structlog.get_logger("task_bridge.test")
"""


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(SERVICE), "TERM": "xterm", **more}


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = START + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def lines(code: str) -> list[dict[str, Any]]:
    done = run(code)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_is_one_json_object_with_its_keys() -> None:
    (line,) = lines("""
        configure()
        log.info("watch accepted", vcenter="lab", task="a\\nb", age_s=1.5, of=[1, None])
        log.debug("not told")
    """)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert list(line) == ["level", "event", "logger", "vcenter", "task", "age_s", "of"]
    assert line["event"] == "watch accepted"
    assert (line["level"], line["logger"], line["task"]) == ("info", "task_bridge.test", "a\nb")


def test_lines_of_libraries_have_the_same_form() -> None:
    told = lines("""
        configure("json", "info")
        import faststream.nats, nats, uvicorn
        broker = faststream.nats.NatsBroker(logger=logging.getLogger("faststream"))
        for name in ("uvicorn.error", "faststream", "nats.aio.client", "asyncio"):
            logging.getLogger(name).warning("from %s", name)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        uvicorn.Config(lambda: None, log_config=None)
        logging.getLogger("uvicorn.error").warning("still")
    """)
    names = [line["logger"] for line in told]
    assert names == ["uvicorn.error", "faststream", "nats.aio.client", "asyncio", "py.warnings", "uvicorn.error"]
    assert told[0]["event"] == "from uvicorn.error"
    assert all(line.keys() == {"timestamp", "level", "event", "logger"} for line in told)


def test_what_libraries_tell_about_every_request_is_left_out() -> None:
    assert not lines("""
        configure("json", "info")
        logging.getLogger("uvicorn.error").info("Started server process")
        logging.getLogger("httpx").info("HTTP Request")
        logging.getLogger("httpcore.http11").debug("headers")
    """)


def test_response_headers_are_not_told_at_debug_either() -> None:
    (line,) = lines("""
        configure("json", "debug")
        logging.getLogger("httpcore.http11").debug("vmware-api-session-id")
        log.debug("told")
    """)
    assert line["event"] == "told"


def test_a_known_failure_is_one_line_without_a_traceback() -> None:
    told = lines("""
        configure("json")
        try:
            raise VCenterUnavailable("lab: no answer") from OSError("reset")
        except VCenterUnavailable as error:
            log.warning("vcenter away", exc_info=True)
            log.warning("vcenter away", exc_info=error)
            logging.getLogger("faststream").exception("failed")
        log.error("group", exc_info=ExceptionGroup("x", [VCenterUnavailable("a"), CannotStart("b", "c")]))
    """)
    assert [line["error"] for line in told] == ["lab: no answer"] * 3 + ["a; b; c"]
    assert not any("exception" in line for line in told)


def test_an_unexpected_failure_keeps_its_traceback_in_its_one_line() -> None:
    told = lines("""
        configure("json")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("look failed", vcenter="lab")
        log.error("group", exc_info=ExceptionGroup("x", [VCenterUnavailable("a"), KeyError("b")]))
    """)
    assert "Traceback" in told[0]["exception"]
    assert "ZeroDivisionError" in told[0]["exception"]
    assert "KeyError" in told[1]["exception"]


def test_what_ends_the_process_or_a_thread_is_a_line_too() -> None:
    told = lines("""
        configure("json")
        def fail():
            raise KeyError("in a thread")
        thread = threading.Thread(target=fail, name="worker"); thread.start(); thread.join()
        async def forgotten():
            asyncio.get_running_loop().call_soon(fail)
            await asyncio.sleep(0)
        asyncio.run(forgotten())
        raise CannotStart("BRIDGE_X: wrong")
    """)
    assert told[0]["event"] == "thread_failed: worker"
    assert told[1]["logger"] == "asyncio"
    assert "KeyError" in told[1]["exception"]
    assert (told[2]["event"], told[2]["error"]) == ("process_failed", "BRIDGE_X: wrong")


@pytest.mark.parametrize("value", ["float('nan')", "{1: object()}", "{(1, 2): 3}", "'\\udcff'", "b'x'", "object()"])
def test_a_value_that_json_cannot_carry_does_not_cost_the_line(value: str) -> None:
    (line,) = lines(f"configure('json'); log.info('told', value={value})")
    assert line["event"] == "told"


def test_console_lines_have_no_colors_without_a_terminal() -> None:
    done = run("configure('console'); log.info('watch accepted', task='a\\nb')")
    assert "watch accepted" in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def on_terminal(code: str, **env: str) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen([sys.executable, "-c", START + code], env=environment(**env), stderr=theirs)
        os.close(theirs)
        assert process.wait(30) == 0
        return terminal.read(65_536).decode()


def test_a_terminal_gets_console_lines_in_color() -> None:
    text = on_terminal("configure('auto'); log.info('watch accepted')")
    assert "watch accepted" in text
    assert "\x1b[" in text
    assert not text.startswith("{")


def test_no_color_is_respected() -> None:
    assert "\x1b[" not in on_terminal("configure('auto'); log.info('watch accepted')", NO_COLOR="1")


def test_a_collector_that_is_away_is_told_once_and_not_at_each_try() -> None:
    told = lines("""
        configure()
        exporter = logging.getLogger("opentelemetry.exporter.otlp")
        for number in range(5):
            exporter.warning("Transient error %s, retrying", number)
        exporter.error("Failed to export")
        logging.getLogger("other").warning("each %s", 1)
        logging.getLogger("other").warning("each %s", 2)
    """)
    assert [line["event"] for line in told] == [
        "Transient error 0, retrying",
        "Failed to export",
        "each 1",
        "each 2",
    ]
