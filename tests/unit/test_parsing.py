"""Long answers outside the event loop: in a thread or a process, the caller gets the same."""

from __future__ import annotations

from functools import partial

import pytest

from task_bridge.domain.task_json import BodyOutOfBounds
from task_bridge.vcenter import parsing
from task_bridge.vcenter.vim import answers, soap
from task_bridge.vcenter.vim.soap import SoapFault, UnreadableXml, XmlOutOfBounds
from unit.test_vim_soap import enveloped, fault

TYPED = 'xsi:type="NoCompatibleHost"'
PAGE = enveloped(
    '<PullResponse><returnval><objects><obj type="Task">task-7</obj><propSet><name>info.state</name><val>error</val>'
    f"</propSet><propSet><name>info.error</name><val><fault {TYPED}><host type='HostSystem'>host-1</host></fault></val>"
    "</propSet></objects><token>more</token></returnval></PullResponse>"
)


async def read(body: bytes, long_bytes: int) -> answers.Page:
    parse = partial(soap.read_answer, method="Pull", read=answers.read_page)
    return await parsing.parse_isolated(body, parse, long_bytes, is_streamed=True)


@pytest.mark.parametrize("size", [0, parsing.SHORT_BYTES * 2, 3_000_000])
async def test_an_answer_is_read_alike_here_in_a_thread_and_in_a_process(size: int) -> None:
    body = PAGE.replace(b"<token>", b" " * size + b"<token>")
    pages = [await read(body, long_bytes) for long_bytes in (0, 10_000_000)]
    assert pages[0] == pages[1]
    (task,) = pages[0].objects
    assert (task.ref.id, task.info["state"], pages[0].token) == ("task-7", "error", "more")
    assert task.info["error"].data == {"host": [{"type": "HostSystem", "id": "host-1"}]}


@pytest.mark.parametrize("long_bytes", [0, 10_000_000])
async def test_an_error_of_parsing_is_raised_wherever_it_was(long_bytes: int) -> None:
    with pytest.raises(SoapFault) as refused:
        await read(fault("<faultstring>no</faultstring><detail><OddFault/></detail>"), long_bytes)
    assert (refused.value.kind, refused.value.reason) == ("Odd", "no")
    with pytest.raises(UnreadableXml, match="isn't XML"):
        await read(b"<a>", long_bytes)


async def test_a_bound_is_named_though_the_process_stops_reading_there() -> None:
    body = PAGE.replace(b"<token>", b"<a/>" * 1_000_000 + b"<token>")
    with pytest.raises(XmlOutOfBounds, match="400000 tags and attributes"):
        await read(body, 0)


async def test_a_process_that_dies_is_an_answer_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "PROCESS_TIMEOUT_S", 0.0)
    with pytest.raises(BodyOutOfBounds):
        await read(PAGE, 0)
