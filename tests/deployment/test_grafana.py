"""The alert rules and the dashboard: Prometheus can read them, and an operator finds the cure of each."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"


def test_prometheus_takes_the_rules_and_its_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed here")
    for command in (["check", "rules", "alerts.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run([promtool, *command], cwd=GRAFANA, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_panels_of_the_dashboard_are_told_apart_and_dont_overlap() -> None:
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for at in (panel["gridPos"] for panel in panels):
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
