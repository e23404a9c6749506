"""The examples for workflow engines: their settings, templates and manifests are what the engines take."""

from __future__ import annotations

import ast
import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
import yaml
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from contract.test_docs import ROOT
from task_bridge.delivery.rendering import BodyTemplate, HttpRequest, build_binary, build_rendered, build_structured
from task_bridge.settings import DeliverySettings, load
from task_bridge.settings.sources import VCENTERS

EXAMPLES = ROOT / "examples/workflows"
PAGE = ROOT / "docs/workflows.md"
SCHEMAS = Path(__file__).parent / "workflows"
EVENTS = Path(__file__).parent / "v1.0/events"
ENGINES = ["airflow", "ansible-eda", "argo-events", "awx", "gitlab", "jenkins", "knative", "n8n", "servicenow", "slack"]
ENGINES += ["stackstorm", "teams", "temporal"]
MANIFESTS = [path for path in sorted(EXAMPLES.rglob("*")) if path.suffix in (".yml", ".yaml")]
FAILED, SUCCEEDED, LOST = (
    json.loads((EVENTS / f"{name}.json").read_text())
    for name in ("completed.failed", "completed.succeeded", "abandoned.lost.never-seen")
)
HOSTILE = [
    "a\"b'c\\d\r\ne\tf\x00g\x1b",
    "<!channel> </script> & &amp; <https://evil.example.com|x> *b* [l](https://evil.example.com)",
    "{{ 7 * 7 }} {% raw %} $CI_JOB_TOKEN ${X} $$ %0a&OUTCOME=succeeded;x=1+1",
    "\N{SNOWMAN} \N{PILE OF POO} \u202e\u2028\ufeff",
    "very long " * 2_000,
    " ",
    "",
]


def with_texts(event: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the event with `text` in each place that vCenter or a requester fills."""
    hostile = deepcopy(event)
    data = hostile["data"]
    data["operation"] = data["description"] = data["user"] = text
    hostile["subject"] = data["task"] = text or "task-1"
    data["watch"]["labels"] = {"team": text}
    data["target"] = {"type": text, "id": text, "name": text, "path": text}
    data["error"] = data["error"] and {**data["error"], "message": text, "messages": [{"id": text, "text": text}]}
    data["result"] = {text: text}
    return hostile


CASES = [FAILED, SUCCEEDED, LOST, *(with_texts(event, text) for event in (FAILED, SUCCEEDED) for text in HOSTILE)]


@cache
def read_settings(engine: str, directory: Path) -> DeliverySettings:
    """Return what the bridge reads from the file of an engine; its paths lead to `directory`."""
    text = (EXAMPLES / engine / "delivery.env").read_text()
    for place in ("/etc/task-bridge", "/run/secrets"):
        text = text.replace(place, str(directory))
    for path in re.findall(r"_FILE=(.*)", text):
        template = EXAMPLES / engine / Path(path).name
        Path(path).write_text(template.read_text() if template.exists() else "user:made-up-secret\n")
    file = directory / f"{engine}.env"
    file.write_text(text)
    read = load({}, env_file=file, need_vcenters=False, need_deliveries=True)
    assert [warning for warning in read.warnings if "unencrypted" not in warning] == []
    (delivery,) = read.deliveries.values()
    return delivery


@cache
def build_template(engine: str) -> BodyTemplate:
    (file,) = (EXAMPLES / engine).glob("*.j2")
    return BodyTemplate(file.read_text())


def build_request(engine: str, delivery: DeliverySettings, event: dict[str, Any]) -> HttpRequest:
    body = msgspec.json.encode(event)
    if delivery.format == "template":
        return build_rendered(body, build_template(engine), delivery.content_type)
    return build_binary(body) if delivery.format == "binary" else build_structured(body)


def check_body(engine: str, body: bytes) -> Any:
    """Return what the engine reads from the body, after a check by the engine's schema."""
    schema = json.loads((SCHEMAS / f"{engine}.json").read_text())
    is_form = engine == "jenkins"
    read = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=True) if is_form else json.loads(body)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(read)
    return read


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workflows")


def test_every_engine_has_its_section_and_its_files() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == ENGINES
    blocks = re.findall(r"^```sh\n(BRIDGE_.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert sorted(blocks) == sorted((EXAMPLES / engine / "delivery.env").read_text() for engine in ENGINES)
    linked = set(re.findall(r"\(\.\./examples/workflows/([\w./-]+)\)", PAGE.read_text()))
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.*") if path.suffix != ".env"}
    assert linked == files


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bridge_reads_the_settings(engine: str, directory: Path) -> None:
    delivery = read_settings(engine, directory)
    assert {"completed", "abandoned"} <= {kind.partition(".")[0] for kind in delivery.events}
    assert VCENTERS not in (EXAMPLES / engine / "delivery.env").read_text()
    templates = list((EXAMPLES / engine).glob("*.j2"))
    assert (delivery.format == "template") == bool(templates)
    assert delivery.template_file is None or delivery.template_file.name == templates[0].name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("event", CASES, ids=range(len(CASES)))
def test_an_engine_can_read_what_it_gets(engine: str, event: dict[str, Any], directory: Path) -> None:
    delivery = read_settings(engine, directory)
    request = build_request(engine, delivery, event)
    content_type = request.headers["Content-Type"].partition(";")[0]
    if delivery.format == "structured":
        assert content_type == "application/cloudevents+json"
        assert JSONFormat().read(CloudEvent, request.body).get_data() == event["data"]
    elif delivery.format == "binary":
        assert content_type == "application/json"
        assert json.loads(request.body) == event["data"]
        assert all(value.isascii() and value.isprintable() for value in request.headers.values())
    else:
        assert content_type == ("application/x-www-form-urlencoded" if engine == "jenkins" else "application/json")
        check_body(engine, request.body)


@given(text=st.text(), event=st.sampled_from([FAILED, SUCCEEDED]))
@settings(deadline=None, max_examples=50)
@pytest.mark.parametrize("engine", [path.parent.name for path in sorted(EXAMPLES.glob("*/*.j2"))])
def test_no_text_breaks_a_template(engine: str, text: str, event: dict[str, Any]) -> None:
    check_body(engine, build_template(engine).render(with_texts(event, text)))


def rendered(engine: str, event: dict[str, Any]) -> Any:
    return check_body(engine, build_template(engine).render(event))


def test_the_templates_say_what_happened() -> None:
    reason = "The change could not be applied."
    awx = rendered("awx", FAILED)["extra_vars"]
    assert (awx["vcenter_outcome"], awx["vcenter_error"], awx["vcenter_target"]["id"]) == (
        "failed",
        reason,
        "domain-c9",
    )
    assert awx["vcenter_labels"] == {"workflow": "patch-42"}
    assert rendered("awx", SUCCEEDED)["extra_vars"]["vcenter_error"] is None
    airflow = rendered("airflow", FAILED)
    assert (airflow["dag_run_id"], airflow["conf"]) == ("vcenter-1764024000000-42.3", {"event": FAILED})
    gitlab = rendered("gitlab", FAILED)
    assert (gitlab["variables"]["VCENTER_OUTCOME"], gitlab["event"]) == ("failed", FAILED)
    temporal = rendered("temporal", FAILED)
    assert (temporal["requestId"], temporal["signalInput"]) == (FAILED["id"], [FAILED])
    incident = rendered("servicenow", FAILED)
    assert incident["short_description"] == "apply$task of domain-c9: failed"
    assert incident["description"].startswith(reason)
    assert incident["correlation_id"] == FAILED["id"]
    assert rendered("slack", FAILED)["text"].startswith(f"apply$task of domain-c9: failed\n{reason}\nlab, task 52f9")
    card = rendered("teams", FAILED)["attachments"][0]["content"]["body"]
    assert [line["inlines"][0]["text"] for line in card[:2]] == ["apply$task of domain-c9: failed", reason]


def test_a_form_has_the_texts_as_they_are() -> None:
    text = HOSTILE[2]
    assert rendered("jenkins", with_texts(FAILED, text)) == {
        "EVENT_ID": [FAILED["id"]],
        "VCENTER": ["lab"],
        "TASK": [text],
        "OPERATION": [text],
        "OUTCOME": ["failed"],
        "ERROR": [text],
    }


@pytest.mark.parametrize("engine", ["slack", "teams"])
def test_a_message_stays_within_the_limits_of_a_chat(engine: str) -> None:
    assert len(build_template(engine).render(with_texts(FAILED, HOSTILE[4]))) < 28_000


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_manifest_is_what_its_engine_takes(path: Path) -> None:
    schemas = json.loads((SCHEMAS / "manifests.json").read_text())
    schema = schemas[str(path.relative_to(EXAMPLES))]
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(yaml.safe_load(path.read_text()))


def test_the_python_of_the_temporal_page_parses() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/temporal.md").read_text(), re.M | re.S)
    assert len(blocks) >= 5
    for block in blocks:
        ast.parse(block)
