"""The OpenAPI document of the API over HTTP: complete, valid, and from the schemas of the NATS API."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from task_bridge import schemas
from task_bridge.domain.event_query import EventQuery
from task_bridge.domain.subjects import VERBS, SubjectNames
from task_bridge.schemas.asyncapi import build_document
from task_bridge.schemas.openapi import build_openapi

API = build_openapi()


def test_it_is_valid_and_a_broken_one_is_not() -> None:
    validate(API, cls=OpenAPIV31SpecValidator)
    for path in (["paths", "/v1/watch", "post", "responses", "200", "description"], ["info", "title"], ["openapi"]):
        broken: Any = copy.deepcopy(API)
        part = broken
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]
        with pytest.raises(OpenAPIValidationError):
            validate(broken, cls=OpenAPIV31SpecValidator)


def test_it_has_every_verb_with_the_messages_of_the_nats_api() -> None:
    messages = build_document(SubjectNames("vcenter.tasks"))["components"]["messages"]
    assert API["paths"].keys() == {*(f"/v1/{verb}" for verb in VERBS), "/v1/events", "/v1/openapi.json"}
    for verb in VERBS:
        operation = API["paths"][f"/v1/{verb}"]["post"]
        assert content_of(operation["requestBody"]) == messages[f"{verb.title()}Request"]["payload"]
        assert content_of(operation["responses"]["200"]) == messages[f"{verb.title()}Reply"]["payload"]
        assert ("202" in operation["responses"]) == (verb in ("watch", "follow"))
        for status, response in operation["responses"].items():
            if status >= "400":
                assert content_of(response) == messages["ErrorReply"]["payload"]


def content_of(part: dict[str, Any]) -> dict[str, Any]:
    return part["content"]["application/json"]["schema"]  # type: ignore[no-any-return]


def test_it_has_every_parameter_of_the_events() -> None:
    parameters = API["paths"]["/v1/events"]["get"]["parameters"]
    assert {one["name"] for one in parameters if one["in"] == "query"} == EventQuery.model_fields.keys()


def test_its_schemas_are_those_of_the_package_and_need_nothing_else() -> None:
    components = API["components"]["schemas"]
    assert components.keys() == schemas.load_components().keys()
    assert "#/$defs/" not in json.dumps(API)
    for schema in components.values():
        Draft202012Validator.check_schema(schema)
    request = {"$ref": "#/components/schemas/WatchRequest", "components": API["components"]}
    assert Draft202012Validator(request).is_valid({"task": "a:b", "timeout": "2h"})
    assert not Draft202012Validator(request).is_valid({"task": "a:b", "tmeout": "2h"})


def test_everything_but_itself_needs_a_token() -> None:
    assert API["security"] == [{"token": []}]
    assert [path for path, item in API["paths"].items() for one in item.values() if one.get("security") == []] == [
        "/v1/openapi.json"
    ]
