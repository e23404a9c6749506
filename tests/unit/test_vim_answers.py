"""What answers about objects say: properties in any order, removed ones, and ones without a name."""

from __future__ import annotations

import pytest

from task_bridge.vcenter.vim import answers, soap
from task_bridge.vcenter.vim.soap import Ref

ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"


def answer_to(method: str, inner: str) -> soap.Element:
    returned = f'<{method}Response xmlns="urn:vim25"><returnval>{inner}</returnval></{method}Response>'
    body = f'<s:Envelope xmlns:s="{ENVELOPE}"><s:Body>{returned}</s:Body></s:Envelope>'
    return soap.parse_answer(body.encode(), method)


@pytest.mark.parametrize(
    "properties",
    [
        "<propSet><name>info.state</name><val>running</val></propSet>",
        "<propSet>\n  <name>info.state</name>\n  <val>running</val>\n</propSet>",
        "<propSet><val>running</val><name>info.state</name></propSet>",
        "<propSet><name>info.state</name><val>running</val><more/></propSet>",
        "<propSet/><propSet><val>7</val></propSet><propSet><name>info.state</name><val>running</val></propSet>",
    ],
    ids=["as vCenter", "indented", "reversed", "with more", "beside ones without a name"],
)
def test_a_page_shows_the_properties_in_whatever_order_they_come(properties: str) -> None:
    objects = f'<objects><obj type="Task">task-1</obj>{properties}</objects>'
    ((shown,), token) = answers.read_page(answer_to("RetrievePropertiesEx", f"{objects}<token>more</token>"))
    assert (shown.ref, shown.info, shown.is_complete, token) == (
        Ref("Task", "task-1"),
        {"state": "running"},
        True,
        "more",
    )


@pytest.mark.parametrize(
    ("change", "info"),
    [
        ("<name>info.progress</name><op>assign</op><val>7</val>", {"progress": 7}),
        ("<name>info.progress</name><op>assign</op>", {"progress": None}),
        ("<name>info.progress</name><op>indirectRemove</op>", {"progress": None}),
        ("<op>assign</op><val>7</val>", {}),
    ],
)
def test_an_update_shows_what_changed_and_what_was_removed(change: str, info: dict[str, object]) -> None:
    update = f'<kind>modify</kind><obj type="Task">task-1</obj><changeSet>{change}</changeSet>'
    update_set = answers.read_update_set(
        answer_to("WaitForUpdatesEx", f"<version>3</version><filterSet><objectSet>{update}</objectSet></filterSet>")
    )
    assert update_set is not None
    (shown,) = update_set.objects
    assert (update_set.version, shown.info, shown.is_complete) == ("3", info, False)
