"""The Helm chart: valid, and the same as the kustomize base and its overlay."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment.test_deploy import DEPLOY, accepts, tool, valid
from go_tools import find_tool

CHART = DEPLOY / "helm"
OF_HELM = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"}
Resources = dict[str, dict[str, Any]]


def helm(*arguments: str | Path) -> str:
    done = subprocess.run([find_tool("helm"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def render(*arguments: str | Path) -> list[dict[str, Any]]:
    documents = yaml.safe_load_all(helm("template", "task-bridge", CHART, *arguments))
    return [document for document in documents if document]


def kustomize(folder: str) -> list[dict[str, Any]]:
    done = tool("kubectl", "kustomize", DEPLOY / "kubernetes" / folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def comparable(resources: list[dict[str, Any]]) -> Resources:
    """The resources by kind without what Helm and kustomize each add: labels, a namespace, a hash of the settings."""
    (name,) = [one["metadata"]["name"] for one in resources if one["kind"] == "ConfigMap"] or ["task-bridge"]
    reduced: Resources = {one["kind"]: _reduce(one, name) for one in resources if one["kind"] != "Namespace"}
    for one in reduced.values():
        one["metadata"].pop("labels", None)  # the overlay's own resources have none
    return reduced


def _reduce(value: Any, config_map: str) -> Any:
    if isinstance(value, dict):
        dropped = OF_HELM | {"namespace", "checksum/settings"}
        reduced = {key: _reduce(one, config_map) for key, one in value.items() if key not in dropped}
        return {key: one for key, one in reduced.items() if not (key == "annotations" and one == {})}
    if isinstance(value, list):
        return [_reduce(one, config_map) for one in value]
    return "task-bridge" if value == config_map else value


@pytest.mark.parametrize("values", [[], ["-f", CHART / "production.yaml"]], ids=["defaults", "production"])
def test_the_chart_is_linted_and_its_manifests_fit_the_schemas(values: list[str | Path]) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, *values)
    for resource in render(*values):
        valid(resource)


@pytest.mark.parametrize(
    ("values", "folder"),
    [([], "base"), (["-f", CHART / "production.yaml"], "production")],
    ids=["base", "production"],
)
def test_the_chart_is_the_same_as_kustomize(values: list[str | Path], folder: str) -> None:
    chart, kustomized = comparable(render(*values)), comparable(kustomize(folder))
    if folder == "base":
        kustomized["Deployment"]["spec"]["replicas"] = 1
    assert chart.keys() == kustomized.keys()
    for kind in chart:
        assert chart[kind] == kustomized[kind], kind


def test_two_releases_select_their_own_pods() -> None:
    (service,) = [one for one in render() if one["kind"] == "Service"]
    (deployment,) = [one for one in render() if one["kind"] == "Deployment"]
    assert service["spec"]["selector"]["app.kubernetes.io/instance"] == "task-bridge"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]


def test_changed_settings_roll_the_pods(tmp_path: Path) -> None:
    def find_annotations(*values: str | Path) -> dict[str, str]:
        (deployment,) = [one for one in render(*values) if one["kind"] == "Deployment"]
        return dict(deployment["spec"]["template"]["metadata"].get("annotations", {}))

    once = find_annotations("--set", "settings.BRIDGE_LOG_LEVEL=info")
    assert once != find_annotations("--set", "settings.BRIDGE_LOG_LEVEL=debug")
    assert find_annotations() == {}


def test_the_bridge_knows_the_settings_of_the_example(tmp_path: Path) -> None:
    accepts(yaml.safe_load((CHART / "production.yaml").read_text())["settings"], tmp_path)
