"""The operators' page: every log line, alert and command that it explains is what there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from task_bridge.checks import expected_jetstream
from task_bridge.domain.clock import DIFFERENCE_LIMIT_S
from task_bridge.jetstream.nats_cli import nats_commands
from task_bridge.settings import load
from task_bridge.web.health import LAG_LIMIT_S

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()
METRICS = (ROOT / "service" / "task_bridge" / "metrics.py").read_text()
LOGGED = ("info", "warning", "error", "exception", "critical")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    return [word for cell in re.findall(r"^\| (`.+?) \|", text, re.M) for word in re.findall(r"`(\w+)`", cell)]


def told(tree: ast.AST) -> Iterator[str]:
    """The names of the log lines in a module: first arguments of the logger's methods, and of `FailureLog`."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        names = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if isinstance(call.func, ast.Attribute) and call.func.attr in LOGGED:
            yield from names[:1]
        elif isinstance(call.func, ast.Name) and call.func.id == "FailureLog":
            yield from names


def test_every_log_line_is_explained_and_no_other() -> None:
    files = [file for file in (ROOT / "service" / "task_bridge").rglob("*.py") if "simulator" not in file.parts]
    lines = {name for file in files for name in told(ast.parse(file.read_text())) if re.fullmatch(r"[a-z_]+", name)}
    assert set(first_cells(section("What the log says"))) == lines, "docs/operating.md explains each line"


def test_every_alert_has_its_cure_in_order() -> None:
    (group,) = yaml.safe_load((ROOT / "deploy/grafana/alerts.yaml").read_text())["groups"]
    assert first_cells(section("What the alerts mean")) == [rule["alert"] for rule in group["rules"]]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_every_metric_of_follows_is_explained() -> None:
    names = {f"task_bridge_{name}" for name in re.findall(r'(?:counter|gauge)\(\s*"(follow\w*)"', METRICS)}
    assert len(names) == 6
    explained = set(re.findall(r"`(task_bridge_\w+?)(?:_total)?(?:\{[\w,]+\})?`", section("Follows")))
    assert explained == names


def test_readiness_and_the_alert_find_the_same_lag_too_much() -> None:
    (group,) = yaml.safe_load((ROOT / "deploy/grafana/alerts.yaml").read_text())["groups"]
    (rule,) = [rule for rule in group["rules"] if rule["alert"] == "TaskBridgeEventLoopLags"]
    assert rule["expr"] == f"task_bridge_event_loop_lag_seconds > {LAG_LIMIT_S}"


def test_readiness_and_the_alert_find_the_same_clocks_too_different() -> None:
    (group,) = yaml.safe_load((ROOT / "deploy/grafana/alerts.yaml").read_text())["groups"]
    (rule,) = [rule for rule in group["rules"] if rule["alert"] == "TaskBridgeClockDiffers"]
    assert rule["expr"] == f"abs(task_bridge_clock_difference_seconds) > {DIFFERENCE_LIMIT_S:.0f}"


def test_the_commands_for_operators_are_those_that_provision_prints() -> None:
    shown = PAGE.partition("<!-- provision --print -->\n```sh\n")[2].partition("\n```")[0]
    settings = load({}, need_vcenters=False)
    assert shown.splitlines() == list(nats_commands(expected_jetstream(settings)))


def test_one_machine_takes_ten_lines() -> None:
    install = PAGE.partition("### One machine, in ten lines")[2].partition("```sh\n")[2].partition("\n```")[0]
    assert len(install.splitlines()) == 10
    for file in re.findall(r"deploy/\S+", install):
        assert (ROOT / file).exists()
