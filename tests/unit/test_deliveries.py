"""Deliveries: what an answer means, the order, the requests, the selection and the settings."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from task_bridge.delivery.answers import compute_retry_delay, judge_answer
from task_bridge.delivery.order import DeliveryOrder
from task_bridge.delivery.rendering import (
    BodyTemplate,
    HttpRequest,
    RenderingFailed,
    add_headers,
    build_authorization,
    build_binary,
    build_rendered,
    build_structured,
)
from task_bridge.delivery.report import UndeliveredData, build_sample, build_undelivered, read_undelivered
from task_bridge.delivery.signature import parse_secrets
from task_bridge.domain.deliveries import Selection, parse_kinds
from task_bridge.domain.errors import CannotStart
from task_bridge.domain.events import from_cloudevent
from task_bridge.domain.subjects import SubjectNames
from task_bridge.settings import load
from validity import validator

NAMES = SubjectNames("vcenter.tasks")
NOW = 1_764_024_055.0
HOSTILE = 'a"b\\c\r\nX-Evil: 1\x00</script>{{ 7 * 7 }}\N{SNOWMAN}\u202e'


def in_seconds(count: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=count), usegmt=True)


@pytest.mark.parametrize(
    ("status", "retry_after", "outcome", "wait_s"),
    [
        (200, None, "delivered", 0),
        (204, "30", "delivered", 0),
        (299, None, "delivered", 0),
        (301, None, "refused", 0),
        (307, None, "refused", 0),
        (400, "30", "refused", 0),
        (401, None, "refused", 0),
        (404, None, "refused", 0),
        (408, None, "retry", 0),
        (410, None, "gone", 0),
        (413, None, "refused", 0),
        (425, "1", "retry", 1),
        (429, "120", "retry", 120),
        (429, in_seconds(90), "retry", 90),
        (429, in_seconds(-90), "retry", 0),
        (429, "soon", "retry", 0),
        (429, "-5", "retry", 0),
        (429, "\N{SUPERSCRIPT TWO}", "retry", 0),
        (500, None, "retry", 0),
        (503, "7", "retry", 7),
        (599, None, "retry", 0),
    ],
)
def test_an_answer_means(status: int, retry_after: str | None, outcome: str, wait_s: float) -> None:
    verdict = judge_answer(status, retry_after, NOW)
    assert (verdict.outcome, verdict.retry_after_s, verdict.code) == (outcome, wait_s, str(status))
    assert str(status) in verdict.reason


@pytest.mark.parametrize(
    ("tries", "retry_after_s", "at_least", "at_most"),
    [
        (1, 0, 0.9, 1.1),
        (2, 0, 1.8, 2.2),
        (5, 0, 14.4, 17.6),
        (9, 0, 230, 282),
        (10, 0, 270, 330),
        (99, 0, 270, 330),
        (1, 60, 60, 60),
        (10, 3600, 3600, 3600),
    ],
)
def test_it_is_tried_again_after(tries: int, retry_after_s: float, at_least: float, at_most: float) -> None:
    for chance in (0.0, 0.5, 1.0):
        assert at_least <= compute_retry_delay(tries, retry_after_s, chance) <= at_most


class Sent(NamedTuple):
    sequence: int
    task_key: str


@given(st.integers(0, 2**32))
def test_events_of_a_task_go_out_one_by_one_in_the_order_of_the_stream(seed: int) -> None:
    chance = Random(seed)
    order: DeliveryOrder[Sent] = DeliveryOrder()
    waiting = [Sent(number, chance.choice("abc")) for number in range(1, 13)]
    sending: list[Sent] = []
    delivered: list[Sent] = []
    now = 0.0
    while len(delivered) < 12:
        step = chance.choice(("add", "take", "deliver", "postpone", "wait"))
        if step == "add" and waiting:
            order.add(waiting.pop(0))
        elif step == "take" and (event := order.take_due(now)) is not None:
            assert event.task_key not in {one.task_key for one in sending}
            assert event.sequence == min(one.sequence for one in order if one.task_key == event.task_key)
            sending.append(event)
        elif step in ("deliver", "postpone") and sending:
            event = sending.pop(chance.randrange(len(sending)))
            if step == "deliver":
                order.remove(event)
                delivered.append(event)
            else:
                order.postpone(event, now + chance.randint(0, 5))
        else:
            now += 10.0
            if not waiting and not sending and (event := order.take_due(now)) is not None:
                sending.append(event)
    assert not len(order)
    for key in "abc":
        assert [one for one in delivered if one.task_key == key] == sorted(
            one for one in delivered if one.task_key == key
        )


def test_what_was_let_go_of_changes_nothing_when_it_ends() -> None:
    order: DeliveryOrder[Sent] = DeliveryOrder()
    order.add(Sent(1, "a"))
    first = order.take_due(0.0)
    assert first is not None
    order.clear()
    order.postpone(first, 5.0)
    order.remove(first)
    assert (len(order), order.take_due(9.0), order.next_due_at()) == (0, None, None)


SECRETS = ("whsec_" + base64.b64encode(b"the old key of 24 bytes!").decode(), base64.b64encode(b"new").decode())


@pytest.mark.parametrize("secret", SECRETS)
def test_the_official_library_finds_each_signature_right(secret: str) -> None:
    event_id, body = build_sample("hook", time.time())
    keys = parse_secrets("\n".join(SECRETS) + "\n")
    request = add_headers(build_structured(body), event_id, int(time.time()), keys=keys, further={})
    Webhook(secret).verify(request.body, request.headers)
    with pytest.raises(Exception, match="signature"):
        Webhook(secret).verify(request.body + b" ", request.headers)


def test_a_secret_may_lack_its_padding() -> None:
    assert parse_secrets("whsec_YWI") == (b"ab",)


@pytest.mark.parametrize("text", ["", "\n", "a\nb\nc", "whsec_", "not base64!", "whsec_\N{SNOWMAN}"])
def test_a_secret_that_cant_be_right_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"must hold|can't be right") as refused:
        parse_secrets(text)
    assert not text.strip() or text.strip() not in str(refused.value)


def hostile_event() -> dict[str, Any]:
    event: dict[str, Any] = msgspec.json.decode(build_sample("hook", NOW)[1])
    event["subject"] = HOSTILE
    event["data"]["description"] = HOSTILE
    return event


def test_hostile_texts_stay_inside_their_header() -> None:
    event = hostile_event()
    request = build_binary(msgspec.json.encode(event))
    assert request.headers["ce-id"] == event["id"]
    assert request.headers["Content-Type"] == "application/json"
    assert "ce-datacontenttype" not in request.headers
    assert "ce-data" not in request.headers
    for value in request.headers.values():
        assert value.isascii()
        assert value.isprintable()
        assert " " not in value
    assert request.headers["ce-subject"].startswith("a%22b\\c%0D%0AX-Evil:%201%00</script>{{")
    assert msgspec.json.decode(request.body) == event["data"]


def test_hostile_texts_stay_inside_their_string() -> None:
    event = hostile_event()
    text = '{"text": {{ ("Task: " ~ event.data.description) | tojson }}, "no": {{ event.x.y | tojson }}}'
    template = BodyTemplate(text)
    request = build_rendered(msgspec.json.encode(event), template, "application/json")
    assert json.loads(request.body) == {"text": f"Task: {HOSTILE}", "no": None}


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ event.__init__.__globals__ }}",
        "{{ event.clear() }}",
        "{{ event.data.update({'kind': 'x'}) }}",
        "{{ 1 / 0 }}",
        "{{ event.id + 1 }}",
        "{% for i in range(999999999) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ event.id | nothing }}",
        "{{",
    ],
)
def test_a_template_reaches_nothing_but_the_event(text: str) -> None:
    body = msgspec.json.encode(hostile_event())
    try:
        rendered = build_rendered(body, BodyTemplate(text), "text/plain").body
    except RenderingFailed:
        return
    assert rendered == b""


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{", b"[1]", b"7"])
def test_what_is_no_event_is_sent_as_it_is_or_refused(body: bytes) -> None:
    assert build_structured(body).body == body
    with pytest.raises(RenderingFailed, match="CloudEvent"):
        build_binary(body)
    with pytest.raises(RenderingFailed, match="CloudEvent"):
        build_rendered(body, BodyTemplate("x"), "text/plain")


def test_the_ids_of_an_event_are_headers_whatever_they_hold() -> None:
    request = add_headers(HttpRequest({}, b""), HOSTILE, 1, further={"X-Team": "a"})
    assert request.headers["webhook-id"] == request.headers["Idempotency-Key"]
    assert request.headers["webhook-id"].isprintable()
    assert request.headers["X-Team"] == "a"


def test_authorization_is_a_header_or_refused() -> None:
    assert build_authorization(bearer="t", basic=None) == {"Authorization": "Bearer t"}
    assert build_authorization(bearer=None, basic="u:\N{SNOWMAN}") == {"Authorization": "Basic dTrimIM="}
    for token in ("a\nb", "\N{SNOWMAN}"):
        with pytest.raises(ValueError, match="BEARER_FILE") as refused:
            build_authorization(bearer=token, basic=None)
        assert token not in str(refused.value)


@pytest.mark.parametrize("body", [build_sample("hook", NOW)[1], b"\xff no JSON"])
def test_a_report_of_an_undelivered_event_is_what_the_schema_says(body: bytes) -> None:
    data = UndeliveredData.build("hook", "https://hook.example.com", "the target answered 404", 1, 7, body)
    report = build_undelivered("hook/x/1", data, NOW)
    validator("undelivered").validate(json.loads(report))
    assert read_undelivered(report) == data
    assert read_undelivered(b"{}") is None


def test_the_sample_is_an_event_as_the_schema_says() -> None:
    event_id, body = build_sample("hook", NOW)
    assert json.loads(body)["id"] == event_id
    decoded = from_cloudevent(body, stalled_reported=False)
    assert decoded is not None
    assert decoded.data.final


def selects(selection: Selection, **changes: Any) -> bool:
    event = msgspec.json.decode(build_sample("hook", NOW)[1])
    event["data"] |= changes
    event["data"]["watch"]["labels"] = {"team": "platform", "stage": "prod"}
    decoded = from_cloudevent(msgspec.json.encode(event), stalled_reported=False)
    assert decoded is not None
    return selection.selects(decoded.data)


@pytest.mark.parametrize(
    ("selection", "is_selected"),
    [
        (Selection(), True),
        (Selection(kinds=("completed",)), True),
        (Selection(kinds=("completed.succeeded",)), True),
        (Selection(kinds=("completed.failed",)), False),
        (Selection(kinds=("completed", "completed.failed")), True),
        (Selection(kinds=("status",)), False),
        (Selection(vcenters=("sample", "other")), True),
        (Selection(vcenters=("other",)), False),
        (Selection(labels=(("team", "platform"), ("stage", "prod"))), True),
        (Selection(labels=(("team", "platform"), ("stage", "test"))), False),
        (Selection(labels=(("nothing", ""),)), False),
        (Selection(operations=("sam*",)), True),
        (Selection(operations=("!sample",)), False),
        (Selection(operations=("clone*",)), False),
    ],
)
def test_a_selection_selects(selection: Selection, is_selected: bool) -> None:
    assert selects(selection) is is_selected


@pytest.mark.parametrize(
    ("selection", "filters"),
    [
        (Selection(), ["*.*.abandoned.*", "*.*.completed.*"]),
        (Selection(kinds=parse_kinds("completed, completed.failed")), ["*.*.completed.*"]),
        (Selection(kinds=parse_kinds("completed.failed,status")), ["*.*.completed.failed", "*.*.status"]),
        (Selection(kinds=("stalled",), vcenters=("a", "b")), ["a.*.stalled", "b.*.stalled"]),
    ],
)
def test_the_filters_of_a_selection_dont_overlap(selection: Selection, filters: list[str]) -> None:
    assert selection.to_filters(NAMES) == [f"vcenter.tasks.events.{one}" for one in filters]


def loaded(**keys: str) -> Any:
    variables = {f"BRIDGE_DELIVERIES__CHAT__{key}": value for key, value in keys.items()}
    return load(variables, need_vcenters=False, need_deliveries=True)


def test_variables_win_over_the_json_of_all_deliveries() -> None:
    settings = load(
        {
            "BRIDGE_DELIVERIES": json.dumps(
                {"chat": {"url": "https://json.example.com", "events": ["status"], "labels": {"team": "a"}}}
            ),
            "BRIDGE_DELIVERIES__CHAT__URL": "https://user:pass@variable.example.com:8443/hook?token=x",
            "BRIDGE_DELIVERIES__CHAT__VCENTERS": "Lab,prod",
        },
        need_vcenters=False,
        need_deliveries=True,
    )
    chat = settings.deliveries["chat"]
    assert chat.selection == Selection(("status",), ("lab", "prod"), (("team", "a"),), ())
    assert chat.origin == "https://variable.example.com:8443"
    assert (chat.timeout_s, chat.give_up_after_s, chat.max_in_flight, chat.start) == (10, 86_400, 8, "new")
    assert "pass" not in json.dumps(settings.describe())
    assert settings.warnings == ()


def test_what_is_unsafe_is_warned_of() -> None:
    assert "unencrypted" in loaded(URL="http://a.example.com").warnings[0]
    assert "any certificate" in loaded(URL="https://a.example.com", VERIFY_TLS="false").warnings[0]


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"EVENTS": "completed"}, "URL: missing"),
        ({"URL": "ftp://s3cret.example.com"}, "URL: must be https"),
        ({"URL": "https://"}, "URL: must be https"),
        ({"URL": "https://a:99999999/s3cret"}, "URL: must be https"),
        ({"URL": "https://a/ s3cret"}, "URL: must be https"),
        ({"URL": "https://a/\r\ns3cret"}, "URL: must be https"),
        ({"EVENTS": "ended"}, "EVENTS: 'ended' isn't a kind"),
        ({"EVENTS": ","}, "EVENTS: must name"),
        ({"VCENTERS": "a.b"}, "VCENTERS: must be names"),
        ({"LABELS": "team"}, "LABELS: must be key=value"),
        ({"START": "yesterday"}, "START: must be new, all"),
        ({"FORMAT": "xml"}, "FORMAT: must be 'structured'"),
        ({"FORMAT": "template"}, "TEMPLATE_FILE"),
        ({"SECRET_FILE": "/nowhere/s3cret-file"}, "SECRET_FILE:"),
        ({"HEADERS": '{"X": 1, "s3cret": 2}'}, "HEADERS: must be a JSON object"),
        ({"HEADERS": '{"Host": "s3cret"}'}, "HEADERS: Host is set by the bridge"),
        ({"HEADERS": '{"ce-id": "s3cret"}'}, "HEADERS: ce-id is set by the bridge"),
        ({"HEADERS": '{"X": "s3cret\\r\\nY: 1"}'}, "HEADERS: the value of X must be printable"),
        ({"URL": "https://u:s3cret@a", "HEADERS": '{"authorization": "x"}'}, "keep one"),
        ({"TIMEOUT": "0"}, "TIMEOUT:"),
        ({"MAX_IN_FLIGHT": "0"}, "MAX_IN_FLIGHT:"),
        ({"GIVE_UP_AFTER": "-1"}, "GIVE_UP_AFTER:"),
        ({"CONTENT_TYPE": "text/plain\r\nX: s3cret"}, "CONTENT_TYPE:"),
        ({"URLL": "x"}, "did you mean URL?"),
    ],
)
def test_a_mistake_is_one_line_that_quotes_no_secret(keys: dict[str, str], mistake: str) -> None:
    with pytest.raises(CannotStart) as refused:
        loaded(**({"URL": "https://a.example.com"} if mistake[:3] != "URL" else {}) | keys)
    assert mistake in str(refused.value)
    assert "s3cret" not in str(refused.value).replace("/nowhere/s3cret-file", "")
    assert refused.value.exit_code == 2


def test_files_are_opened_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "template").write_text("{{ event.id }}")
    (tmp_path / "token").write_text("t\n")
    keys = {"URL": "https://a.example.com", "FORMAT": "template", "TEMPLATE_FILE": str(tmp_path / "template")}
    chat = loaded(**keys, BEARER_FILE=str(tmp_path / "token")).deliveries["chat"]
    assert chat.bearer_file.read() == "t"
    with pytest.raises(CannotStart, match="keep one"):
        loaded(**keys, BEARER_FILE=str(tmp_path / "token"), BASIC_FILE=str(tmp_path / "token"))
