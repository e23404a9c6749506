"""The AsyncAPI document: complete by the contract, and valid by the official parser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from node import node_with_packages_of
from task_bridge import schemas
from task_bridge.domain.events import SUBJECT_KINDS
from task_bridge.domain.subjects import VERBS, SubjectNames
from task_bridge.schemas import load_schema
from task_bridge.schemas.asyncapi import build_document

PARSER = Path(__file__).with_name("asyncapi")
NAMES = SubjectNames("acme.tasks")
API = build_document(NAMES)


def test_every_subject_is_named_with_the_configured_prefix() -> None:
    assert {channel["address"] for channel in API["channels"].values()} == {
        None,  # inboxes
        NAMES.requests,
        NAMES.rejected,
        f"{NAMES.undelivered}.{{delivery}}",
        *(f"{NAMES.api}.{verb}" for verb in VERBS),
        NAMES.follow_requests,
        *(f"{root}.{{vcenter}}" for root in (NAMES.requests, NAMES.follow_requests)),
        *(f"{NAMES.api}.{verb}.{{vcenter}}" for verb in VERBS),
        *(f"{NAMES.follows}.{{vcenter}}.{{name}}.{kind}" for kind in ("following", "gap", "unfollowed")),
        *(f"{NAMES.events}.{{vcenter}}.{{task}}.{kind}" for kind in SUBJECT_KINDS),
    }


def test_every_verb_has_its_request_its_reply_and_the_error() -> None:
    for verb in VERBS:
        reply = API["channels"][f"api.{verb}.reply"]["messages"]
        assert list(reply) == [f"{verb.title()}Reply", "ErrorReply"]
        assert API["operations"][f"api.{verb}"]["reply"]["channel"]["$ref"] == f"#/channels/api.{verb}.reply"
    headers = API["components"]["messages"]["ErrorReply"]["headers"]
    assert headers["required"] == ["Nats-Service-Error", "Nats-Service-Error-Code"]


def test_it_has_every_component_of_the_schemas() -> None:
    names = {name for file in schemas.NAMES for name in load_schema(file)["$defs"]}
    assert API["components"]["schemas"].keys() == names
    assert "#/$defs/" not in json.dumps(API)


@pytest.mark.timeout(240)  # the packages of the parser come first
def test_the_official_parser_finds_it_valid_and_a_broken_one_not(tmp_path: Path) -> None:
    node = node_with_packages_of(PARSER)
    broken: dict[str, Any] = {**API, "operations": {"watch": {"action": "hear", "channel": {"$ref": "#/nowhere"}}}}
    files = {name: tmp_path / f"{name}.json" for name in ("good", "broken")}
    for name, text in (("good", API), ("broken", broken)):
        files[name].write_text(json.dumps(text))
    command: list[str | Path] = [node, PARSER / "validate.mjs", *files.values()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == f"{files['good']}: 44 channels, 35 messages\n", ended.stderr
    errors = [line.split(": ")[0] for line in ended.stderr.splitlines() if " error " in f"{line} "]
    assert set(errors) == {str(files["broken"])}
