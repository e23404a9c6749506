"""The alert rules and the dashboard: Prometheus can read them, and an operator finds the cure of each."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"


def test_prometheus_takes_its_configuration_and_the_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool", path=ROOT / ".tools") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed here")
    for command in (
        ["check", "rules", "alerts.yaml"],
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "alerts.test.yaml"],
    ):
        done = subprocess.run([promtool, *command], cwd=GRAFANA, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried_when_it_fires_and_when_it_stays_quiet() -> None:
    (group,) = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    tests = yaml.safe_load((GRAFANA / "alerts.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in group["rules"]}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_the_panels_of_the_dashboard_are_told_apart_and_dont_overlap() -> None:
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for at in (panel["gridPos"] for panel in panels):
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
