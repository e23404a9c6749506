"""Task ids as vCenter's tools print them, and what can't be one."""

from __future__ import annotations

import pytest

from task_bridge.domain.errors import Refused
from task_bridge.domain.requests import ListRequest, TaskRequest, WatchRequest, describe_rejected_request, parse_request
from task_bridge.domain.task_ids import parse_task_id


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("task-42", "task-42"),
        ("Task:task-42", "task-42"),  # govc
        ("Task-task-42", "task-42"),  # PowerCLI
        ("vim.Task:task-42", "task-42"),  # pyVmomi
        ("'vim.Task:task-42'", "task-42"),  # pyVmomi's repr
        ('"task-42 "', "task-42"),
        (" \t'task-42'\r\n", "task-42"),
        ("“task-42”", "task-42"),
        ("`Task-task-42`", "task-42"),
        ("\ufefftask-42\u200b", "task-42"),
        ("\xa0task-42", "task-42"),
        (' "52f9:com.vmware.esx"\n', "52f9:com.vmware.esx"),
        ("Task:task-42x", "Task:task-42x"),  # nobody prints a classic task so: it may be anything
        ("Task:52f9", "Task:52f9"),
        ("vim.VirtualMachine:vm-1", "vim.VirtualMachine:vm-1"),
        ("a" * 256 + "\n", "a" * 256),
    ],
)
def test_an_id_is_read_as_tools_print_it(text: str, task: str) -> None:
    assert parse_task_id(text) == task


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("haTask-ha-host-vim.host.PatchManager.Check-178", "ESXi host itself"),
        ("'vim.Task:haTask-178-vim.VirtualMachine.powerOn-9'", "ESXi host itself"),
        ("[task-42]", "one task id"),
        ("(task-42)", "one task id"),
        ("task 42", "one task id"),
        ("task-42\xa0task-43", "one task id"),
        ("task-'42", "one task id"),
        ('{"error_type":"NOT_FOUND"}', "one task id"),
        ("task-42\ntask-43", "control characters"),
        ("''", "1 to 256 bytes"),
        ('"."', "nor be"),
    ],
)
def test_what_can_not_be_an_id_is_refused_with_a_sentence(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_task_id(text)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("body", "task"),
    [
        (b"task-42", "task-42"),
        (b"Task-task-42\n", "task-42"),
        (b"'vim.Task:task-42'\r\n", "task-42"),
        (BOM + b"task-42", "task-42"),
        (BOM + b'"task-42"', "task-42"),
        (BOM + b'{"task": "task-42"}', "task-42"),
        (b"52f9:com.vmware.esx", "52f9:com.vmware.esx"),
        (b'"\\"task-42\\""', "task-42"),
    ],
)
@pytest.mark.parametrize("model", [WatchRequest, TaskRequest])
def test_a_body_may_be_a_bare_id_or_begin_with_a_byte_order_mark(
    model: type[TaskRequest], body: bytes, task: str
) -> None:
    assert parse_request(model, body).task == task


@pytest.mark.parametrize(
    "body",
    [b"[task-42]", b"task 42", b"task-42 task-43", b"haTask-ha-host-1", b"{task-42}", b"12", b"task-\xff", b"\xff"],
)
def test_any_other_body_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        parse_request(WatchRequest, body)


@pytest.mark.parametrize("body", [b"[task-42]", b"task 42", b"'vim.Task:task-42',", b"<task-42>"])
def test_a_body_that_is_nearly_an_id_is_refused_as_that(body: bytes) -> None:
    with pytest.raises(Refused, match="JSON or as one plain task id"):
        parse_request(TaskRequest, body)


def test_only_a_request_about_a_task_may_be_a_bare_id() -> None:
    assert parse_request(ListRequest, BOM).limit == 100
    with pytest.raises(Refused):
        parse_request(ListRequest, b"lab")


def test_a_rejection_names_the_task_of_a_bare_body() -> None:
    assert describe_rejected_request(BOM + b"haTask-ha-host-1")["task"] == "haTask-ha-host-1"


@pytest.mark.parametrize(
    "body", [b'"task-1"', b'{"task": "task-1"}', b'{"task": "task-1", "vcenter": "lab"}', b"task-1"]
)
def test_the_subject_of_a_request_names_its_vcenter(body: bytes) -> None:
    assert parse_request(WatchRequest, body, "lab").vcenter == "lab"
    assert parse_request(ListRequest, b"", "lab").vcenter == "lab"


@pytest.mark.parametrize("vcenter", ['"other"', '""', "5", '["lab"]'])
def test_a_body_that_names_another_vcenter_than_the_subject_is_refused(vcenter: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_request(WatchRequest, b'{"task": "task-1", "vcenter": %s}' % vcenter.encode(), "lab")
    assert [detail.field for detail in refused.value.details] == ["vcenter"]
