"""vCenter's renderings: what is sent, what an answer means, and what is read out of it."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest

from task_bridge.domain import task_json
from task_bridge.domain.task import NO_RESULT, Rendering, Task
from task_bridge.domain.task_json import UnreadableBody, parse_raw_task
from task_bridge.vcenter.cis import renderings
from task_bridge.vcenter.cis.renderings import Refusal, SessionFault
from task_bridge.vcenter.http import Answer

TASK = "52f9f1b0-160a:com.vmware.esx.settings"


def answer(status: int, body: Any = b"") -> Answer:
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())


def api_error(kind: str, *ids: str, text: str = "Words.") -> dict[str, Any]:
    return {"error_type": kind, "messages": [{"id": id_, "default_message": text, "args": []} for id_ in ids]}


def rest_error(kind: str, *ids: str, text: str = "Words.") -> dict[str, Any]:
    messages = [{"id": id_, "default_message": text, "args": []} for id_ in ids]
    return {"type": f"com.vmware.vapi.std.errors.{kind}", "value": {"messages": messages}}


ROUTER = "com.vmware.vapi.rest.httpNotFound"
OLD_ROUTER = {
    "localizableMessages": [{"defaultMessage": "Not found.", "id": ROUTER}],
    "majorErrorCode": 404,
    "name": ROUTER,
}


class TestSent:
    @pytest.mark.parametrize(
        ("task", "segment"),
        [
            (TASK, TASK),
            ("a b", "a%20b"),
            ("a/../b?c#d", "a%2F..%2Fb%3Fc%23d"),
            ("ä%", "%C3%A4%25"),
            ("a&b=c+d", "a%26b%3Dc%2Bd"),
            ("-._~:", "-._~:"),
        ],
    )
    def test_an_id_can_not_leave_its_place(self, task: str, segment: str) -> None:
        assert renderings.encode_task_id(task) == segment
        assert unquote(segment) == task

    def test_a_get_leaves_out_the_result_in_the_way_of_its_rendering(self) -> None:
        assert renderings.task_target("api", "a:b", with_result=False) == "/api/cis/tasks/a:b?exclude_result=true"
        assert (
            renderings.task_target("rest", "a:b", with_result=False) == "/rest/cis/tasks/a:b?spec.exclude_result=true"
        )
        assert renderings.task_target("api", "a:b", with_result=True) == "/api/cis/tasks/a:b"

    @pytest.mark.parametrize(
        ("with_result", "api", "rest"),
        [
            (True, "return_all=true", "spec.return_all=true"),
            (False, "exclude_result=true&return_all=true", "spec.exclude_result=true&spec.return_all=true"),
        ],
    )
    def test_a_get_asks_for_all_in_the_way_of_its_rendering(self, with_result: bool, api: str, rest: str) -> None:
        asked = {"with_result": with_result, "return_all": True}
        assert renderings.task_target("api", "a:b", **asked) == f"/api/cis/tasks/a:b?{api}"
        assert renderings.task_target("rest", "a:b", **asked) == f"/rest/cis/tasks/a:b?{rest}"

    def test_a_list_asks_for_all_in_the_way_of_its_rendering(self) -> None:
        (call,) = renderings.list_calls("api", ["a:b"], with_result=True, return_all=True)
        assert json.loads(call.content or b"")["result_spec"] == {"return_all": True}
        (call,) = renderings.list_calls("api", ["a:b"], with_result=False, return_all=True)
        assert json.loads(call.content or b"")["result_spec"] == {"exclude_result": True, "return_all": True}
        (call,) = renderings.list_calls("rest", ["a:b"], with_result=True, return_all=True)
        assert call.target == "/rest/cis/tasks?filter_spec.tasks=a:b&result_spec.return_all=true"

    def test_a_list_on_api_is_one_request_with_a_body(self) -> None:
        (call,) = renderings.list_calls("api", ["a:b", "c:b"], with_result=False)
        assert (call.method, call.target) == ("POST", "/api/cis/tasks?action=list")
        assert json.loads(call.content or b"") == {
            "filter_spec": {"tasks": ["a:b", "c:b"]},
            "result_spec": {"exclude_result": True},
        }
        (call,) = renderings.list_calls("api", ["a:b"], with_result=True)
        assert json.loads(call.content or b"") == {"filter_spec": {"tasks": ["a:b"]}}

    def test_a_list_on_rest_repeats_the_parameter_and_keeps_urls_short(self) -> None:
        (call,) = renderings.list_calls("rest", ["a:b", "c&:b"], with_result=False)
        assert call.method == "GET"
        assert call.content is None
        assert call.target == (
            "/rest/cis/tasks?filter_spec.tasks=a:b&filter_spec.tasks=c%26:b&result_spec.exclude_result=true"
        )
        tasks = [f"{number:036}:{'x' * 60}" for number in range(500)]
        calls = list(renderings.list_calls("rest", tasks, with_result=True))
        assert max(len(call.target) for call in calls) < 8_000
        asked = [task for call in calls for task in re.findall(r"filter_spec\.tasks=([^&]+)", call.target)]
        assert asked == tasks
        (lone,) = renderings.list_calls("rest", ["ä" * 3_000], with_result=False)
        assert lone.target.count("filter_spec.tasks") == 1


class TestMeaning:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (answer(401), SessionFault.CERTAIN),
            (answer(401, api_error("UNAUTHENTICATED", "x")), SessionFault.CERTAIN),
            (answer(403, api_error("UNAUTHENTICATED", "x")), SessionFault.LIKELY),
            (answer(403, rest_error("unauthenticated", "x")), SessionFault.LIKELY),
            (answer(403, api_error("UNAUTHORIZED", "vapi.security.authorization.invalid")), SessionFault.POSSIBLE),
            (answer(403, b"<html>"), SessionFault.POSSIBLE),
            (
                answer(403, api_error("ERROR", "com.vmware.vapi.endpoint.method.authentication.required")),
                SessionFault.LIKELY,
            ),
            (
                answer(500, rest_error("error", "x", text="Rejecting login on a session where login failed")),
                SessionFault.LIKELY,
            ),
            (answer(500, {"type": "x", "value": {"messages": [{"id": "NotAuthenticated"}]}}), SessionFault.LIKELY),
            (answer(500, api_error("ERROR", "x", text="The session has expired.")), SessionFault.LIKELY),
            (answer(500, api_error("RESOURCE_INACCESSIBLE", "x")), SessionFault.NO),
            (answer(500, b"oops"), SessionFault.NO),
            (answer(200, b"{}"), SessionFault.NO),
            (answer(404, api_error("NOT_FOUND", "x")), SessionFault.NO),
        ],
    )
    def test_which_answers_mean_that_the_session_ended(self, given: Answer, expected: SessionFault) -> None:
        assert renderings.classify_session_fault(given) is expected

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (answer(404, api_error("NOT_FOUND", ROUTER)), True),
            (answer(404, rest_error("not_found", "com.vmware.vapi.rest.operationsForUrlNotFound")), True),
            (answer(404, OLD_ROUTER), True),
            (answer(404, b"404 page not found\n"), True),
            (answer(404, b"<html><h1>Not Found</h1>"), True),
            (answer(404), True),
            (answer(405), True),
            (answer(307), True),
            (answer(404, api_error("NOT_FOUND", "com.vmware.vcIntegrity.lifecycle.EntityNotFound")), False),
            (answer(404, rest_error("not_found", "x")), False),
            (answer(400, api_error("INVALID_ARGUMENT", "x")), False),
            (answer(200, b"{}"), False),
        ],
    )
    def test_which_answers_mean_that_nothing_is_offered_there(self, given: Answer, expected: bool) -> None:
        assert renderings.is_no_route(given) is expected

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (answer(404, api_error("NOT_FOUND", "x")), Refusal.TASK),
            (answer(404, rest_error("not_found", "x")), Refusal.TASK),
            (answer(404, b'{"error_type":"NOT_FOUND","messages":[]}'), Refusal.TASK),
            (answer(404, b'{"type":"com.vmware.vapi.std.errors.not_found","value":{"messages":[]}}'), Refusal.TASK),
            (answer(403, api_error("UNAUTHORIZED", "x")), Refusal.TASK),
            (answer(403, rest_error("unauthorized", "x")), Refusal.TASK),
            (answer(404, api_error("UNAUTHORIZED", "x")), Refusal.ROUTER),
            (answer(403, api_error("NOT_FOUND", "x")), Refusal.ROUTER),
            (answer(404, api_error("OPERATION_NOT_FOUND", "x")), Refusal.ROUTER),
            (answer(404, rest_error("operation_not_found", "x")), Refusal.ROUTER),
            (answer(404, api_error("NOT_FOUND", "com.vmware.vapi.rest.httpNotFound")), Refusal.ROUTER),
            (answer(404, rest_error("not_found", "com.vmware.vapi.rest.operationsForUrlNotFound")), Refusal.ROUTER),
            (answer(404, OLD_ROUTER), Refusal.ROUTER),
            (answer(404, api_error("NOT_FOUND", "x", text="Cannot find provider for 'a.b'.")), Refusal.PROVIDER),
            (answer(404, rest_error("not_found", "x", text="cannot find provider")), Refusal.PROVIDER),
            (answer(404, b"<html><h1>Not Found</h1>"), Refusal.ROUTER),
            (answer(404, b"404 page not found"), Refusal.ROUTER),
            (answer(404), Refusal.ROUTER),
            (answer(404, b'{"type":"not_found","title":"Not Found"}'), Refusal.ROUTER),
            (answer(404, b'{"name":"NOT_FOUND","message":"no backend"}'), Refusal.ROUTER),
            (answer(404, b'{"type":"about:blank","title":"Not Found","status":404}'), Refusal.ROUTER),
            (answer(404, b'["NOT_FOUND"]'), Refusal.ROUTER),
            (answer(403), Refusal.ROUTER),
        ],
    )
    def test_only_the_tasks_service_says_something_about_a_task(self, given: Answer, expected: Refusal) -> None:
        assert renderings.classify_refusal(given) is expected

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (answer(404, api_error("NOT_FOUND", "x", text="No task.")), "No task. (HTTP 404)"),
            (answer(503, b"<html><body>\n<h1>503</h1> down</body>"), "HTTP 503 (503 down)"),
            (answer(401), "HTTP 401"),
            (answer(502, b"\xff\xfe"), "HTTP 502 (\ufffd\ufffd)"),
        ],
    )
    def test_vcenter_s_own_words_are_passed_on(self, given: Answer, expected: str) -> None:
        assert str(renderings.parse_message(given)) == expected
        assert renderings.parse_message(given).to_task_error().message


class TestRead:
    @pytest.mark.parametrize(
        ("body", "token"),
        [
            (b'"b00db39f"', "b00db39f"),
            (b'{"value":"b00db39f"}', "b00db39f"),
            (b'""', None),
            (b"", None),
            (b'{"value":1}', None),
            (b'"a\\r\\nb"', None),
            (b'"\xc3\xa4"', None),
            (b"<html>", None),
        ],
    )
    def test_a_session_id_is_read_from_either_login(self, body: bytes, token: str | None) -> None:
        assert renderings.parse_token(body) == token

    @pytest.mark.parametrize(
        ("rendering", "body"),
        [
            ("api", b'{"a:b":{"status":"RUNNING"},"c:b":{}}'),
            ("rest", b'{"value":[{"key":"a:b","value":{"status":"RUNNING"}},{"key":"c:b","value":{}}]}'),
            ("rest", b'{"value":{"a:b":{"status":"RUNNING"},"c:b":{}}}'),
        ],
    )
    def test_a_list_is_read_in_all_its_forms(self, rendering: Rendering, body: bytes) -> None:
        found = task_json.parse_list(rendering, body)
        assert {task: bytes(info) for task, info in found.items()} == {"a:b": b'{"status":"RUNNING"}', "c:b": b"{}"}

    @pytest.mark.parametrize(
        ("rendering", "body"),
        [
            ("api", b"[]"),
            ("api", b""),
            ("api", b'{"a":'),
            ("api", b'{"\xff":{}}'),
            ("rest", b"{}"),
            ("rest", b'{"value":[{"key":"a"}]}'),
            ("rest", b'{"value":"a"}'),
            ("api", b"[" * 100_000),
        ],
    )
    def test_what_is_no_list_is_unreadable(self, rendering: Rendering, body: bytes) -> None:
        with pytest.raises(UnreadableBody):
            task_json.parse_list(rendering, body)

    def test_a_broken_task_in_a_list_is_that_task_s_trouble_alone(self) -> None:
        found = task_json.parse_list("api", b'{"a":{"status":"RUNNING","description":"\xff"},"b":{"status":1},"c":3}')
        assert parse_raw_task(found["a"], "api", with_result=False).status == "RUNNING"
        for broken in "bc":
            with pytest.raises(UnreadableBody):
                parse_raw_task(found[broken], "api", with_result=False)

    @pytest.mark.parametrize(
        ("body", "value"),
        [
            (b'"\\ud800"', "\ud800"),
            (b'"\xff"', "\ufffd"),
            (b"123456789012345678901234567890", 123456789012345678901234567890),
            (b"1e400", float("inf")),
        ],
    )
    def test_json_that_only_others_refuse_is_read(self, body: bytes, value: object) -> None:
        assert task_json.parse_json(body) == value

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
    def test_what_is_no_json_is_unreadable(self, body: bytes) -> None:
        with pytest.raises(UnreadableBody):
            task_json.parse_json(body)


class TestTask:
    def read(self, *, with_result: bool = False, **info: Any) -> Task:
        return parse_raw_task(msgspec.Raw(json.dumps(info).encode()), "api", with_result=with_result)

    def test_a_result_that_was_not_asked_for_is_taken_from_a_task_that_ended_only(self) -> None:
        assert self.read(status="SUCCEEDED", result={"a": 1}).result is not None
        assert self.read(status="RUNNING", result={"a": 1}).result is None

    def test_a_result_that_was_asked_for_is_knowledge_even_when_there_is_none(self) -> None:
        assert self.read(status="SUCCEEDED", with_result=True).result == NO_RESULT
        assert self.read(status="SUCCEEDED").result is None
        assert self.read(status="SUCCEEDED", result=None).result is None
        partial = self.read(status="RUNNING", result=[1], with_result=True).result
        assert partial is not None
        assert partial.json == b"[1]"

    def test_what_only_the_end_tells_is_kept_for_the_end(self) -> None:
        assert self.read(status="RUNNING", notifications={"info": []}).extra is None
        assert self.read(status="FAILED", notifications={"info": []}).extra == {"notifications": {"info": []}}
