"""What lies in `deploy/`: valid for the tools it is for, its settings known to the bridge, its probes answered."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it has no types
import pytest
import yaml

from deployment.dockerfile import instructions
from task_bridge.settings import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.31"  # two years old: what clusters have
UNIT = DEPLOY / "systemd" / "task-bridge.service"
ROUTES = {"/livez", "/readyz", "/metrics"}


def tool(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a tool of the test environment, or of the system."""
    found = Path(sys.executable).with_name(str(command[0]))
    name = str(found) if found.exists() else shutil.which(command[0])
    if name is None:
        pytest.skip(f"{command[0]} isn't installed here")
    return subprocess.run([name, *command[1:]], capture_output=True, text=True, check=False)


def accepts(environ: Mapping[str, Any], secrets: Path) -> None:
    """The bridge starts with these settings, their secrets being where `secrets` is, and has nothing to say."""
    given = {name: str(value) for name, value in environ.items() if str(name).startswith("BRIDGE_")}
    for name, value in given.items():
        if name.endswith("_FILE"):
            (secrets / Path(value).name).write_text("secret")
            given[name] = str(secrets / Path(value).name)
    warnings = [warning for warning in load(given).warnings if "http://" not in warning]  # the simulator's
    assert warnings == []


# The container


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    done = tool("hadolint", "--no-color", DEPLOY / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_in_particular_from_a_base_by_its_tag_with_a_digest_if_one_is_given() -> None:
    said = instructions((DEPLOY / "Dockerfile").read_text())
    assert [rest for word, rest in said if word == "USER"] == ["10001:10001"]
    given = dict(rest.split("=", 1) for word, rest in said if word == "ARG")
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", given["PYTHON"])
    assert given["DIGEST"] == ""
    assert {rest.split()[0] for word, rest in said if word == "FROM"} == {"${PYTHON}${DIGEST}"}


def test_only_the_wheel_and_its_dependencies_go_into_the_image() -> None:
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in kept if line and line[0] != "#"] == ["*", "!deploy/requirements.txt", "!dist/*.whl"]


# Compose


def compose() -> dict[str, Any]:
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    return dict(yaml.safe_load(text))


def test_the_compose_file_is_one() -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout


def test_compose_mounts_what_is_there_and_publishes_on_loopback_only() -> None:
    services = compose()["services"]
    for service in services.values():
        assert service["read_only"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for source in (mount.split(":")[0] for mount in service.get("volumes", ())):
            assert source in compose()["volumes"] or (DEPLOY / source).exists()
    assert all((DEPLOY / secret["file"]).exists() for secret in compose()["secrets"].values())


def test_the_bridge_of_compose_knows_its_settings(tmp_path: Path) -> None:
    accepts(compose()["services"]["bridge"]["environment"], tmp_path)


# Kubernetes


def rendered() -> list[dict[str, Any]]:
    done = tool("kubectl", "kustomize", DEPLOY / "kubernetes" / "production")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(kind: str) -> dict[str, Any]:
    return next(resource for resource in rendered() if resource["kind"] == kind)


def valid(resource: dict[str, Any]) -> None:
    if resource["apiVersion"] not in ("kustomize.config.k8s.io/v1beta1", "monitoring.coreos.com/v1"):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", sorted((DEPLOY / "kubernetes" / "base").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_manifest_fits_the_schema_but_for_the_selector_that_kustomize_adds(file: Path) -> None:
    for resource in yaml.safe_load_all(file.read_text()):
        if resource["kind"] == "Deployment":
            resource["spec"]["selector"] = {"matchLabels": {}}
        valid(resource)


def test_the_rendered_overlay_fits_the_schema() -> None:
    resources = rendered()
    for resource in resources:
        valid(resource)
    kinds = {resource["kind"] for resource in resources}
    assert {"Deployment", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "ConfigMap"} <= kinds


def test_three_replicas_on_three_nodes_with_probes_that_are_answered() -> None:
    spec = of_kind("Deployment")["spec"]
    pod = spec["template"]["spec"]
    bridge = pod["containers"][0]
    labels = spec["template"]["metadata"]["labels"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert spec["replicas"] == 3
    assert apart["labelSelector"]["matchLabels"].items() <= labels.items()
    assert bridge["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {bridge[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "startup")} == {"/livez"}
    assert bridge["securityContext"]["readOnlyRootFilesystem"]
    for kind, of in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        assert of_kind(kind)["spec"][of]["matchLabels"].items() <= labels.items()


def test_the_bridge_of_kubernetes_knows_its_settings_and_gets_secrets_as_files(tmp_path: Path) -> None:
    settings = of_kind("ConfigMap")["data"]
    mounts = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    files = [value for name, value in settings.items() if name.endswith("_FILE")]
    assert len(files) == 2
    assert all(Path(file).parent == Path(mounts[0]["mountPath"]) for file in files)
    assert "subPath" not in mounts[0]
    accepts(settings, tmp_path)


TOLERATED_S = 30
"""How long all HTTP connections may be taken, and every probe refused, before something follows from it."""


def test_the_probes_of_kubernetes_tolerate_that_all_connections_are_taken() -> None:
    (bridge,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    for kind in ("startup", "liveness", "readiness"):
        probe = bridge[f"{kind}Probe"]
        failures = probe.get("failureThreshold", 3)
        assert (failures - 1) * probe["periodSeconds"] >= TOLERATED_S, kind


def test_the_health_check_of_the_image_does_too() -> None:
    (rest,) = [rest for word, rest in instructions((DEPLOY / "Dockerfile").read_text()) if word == "HEALTHCHECK"]
    interval = int(re.findall(r"--interval=(\d+)s", rest)[0])
    retries = int((re.findall(r"--retries=(\d+)", rest) or ["3"])[0])
    assert (retries - 1) * interval > TOLERATED_S


def test_no_core_of_a_process_that_holds_secrets_is_dumped() -> None:
    assert "\nLimitCORE=0\n" in UNIT.read_text()
    assert compose()["services"]["bridge"]["ulimits"] == {"core": 0}


def test_nats_of_kubernetes_gets_every_password_that_its_accounts_ask_for() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "nats-values.yaml").read_text())
    asked = set(re.findall(r"\$(NATS_\w+)", (DEPLOY / "nats" / "accounts.conf").read_text()))
    assert set(values["container"]["env"]) == asked


# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    file = tmp_path / UNIT.name
    file.write_text(UNIT.read_text().replace("/opt/task-bridge/bin/task-bridge", "/bin/true"))
    return file


def test_systemd_takes_the_unit(unit: Path) -> None:
    for text in ("", (DEPLOY / "systemd" / "embedded-nats.conf").read_text()):
        drop_in = unit.parent / f"{unit.name}.d"
        drop_in.mkdir(exist_ok=True)
        (drop_in / "more.conf").write_text(text.replace("/opt/task-bridge/bin/task-bridge", "/bin/true"))
        done = tool("systemd-analyze", "verify", "--man=no", unit)
        assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_the_unit_hardened(unit: Path) -> None:
    done = tool("systemd-analyze", "security", "--offline=yes", "--threshold=15", unit)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_bridge_of_systemd_knows_its_settings(tmp_path: Path) -> None:
    lines = (DEPLOY / "systemd" / "task-bridge.env").read_text().splitlines()
    lines += re.findall(r"^Environment=(.*)$", UNIT.read_text(), re.M)
    settings = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
    loaded = re.findall(r"^LoadCredential=(.*?):", UNIT.read_text(), re.M)
    assert {Path(value).name for name, value in settings.items() if name.endswith("_FILE")} == set(loaded)
    accepts(settings, tmp_path)
