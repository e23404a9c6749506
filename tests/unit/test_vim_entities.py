"""Answers about objects of the inventory and what is above them, also such as the simulated vCenter doesn't give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from lxml import etree

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.vcenter.http import AnswerLimits, AnswerTooLarge, NoAnswer
from task_bridge.vcenter.vim.answers import EntityPage
from task_bridge.vcenter.vim.api import EntitiesRefused, fetch_entities
from task_bridge.vcenter.vim.inventory import Entity
from task_bridge.vcenter.vim.session import ServiceContent, SessionEnded, VimSession
from task_bridge.vcenter.vim.soap import Element, Ref, SoapFault, UnreadableXml

XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
VM, FOLDER, VAPP = Ref("VirtualMachine", "vm-7"), Ref("Folder", "group-v3"), Ref("VirtualApp", "resgroup-v9")
COLLECTOR = Ref("PropertyCollector", "propertyCollector")


class FakeSession:
    """Gives one answer after the other; `calls` are the methods and their arguments."""

    number = 1

    def __init__(self, *answers: str | VCenterUnavailable) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str]] = []
        self.turns = 0

    async def ensure_logged_in(self) -> ServiceContent:
        return ServiceContent(COLLECTOR, COLLECTOR, COLLECTOR, COLLECTOR, "")

    async def read(
        self,
        operation: str,
        method: str,
        this: Ref,
        inner: str,
        read: Callable[[Element], EntityPage],
        limits: AnswerLimits,
    ) -> EntityPage:
        assert (operation, limits.read_timeout_s) == ("names", 3.0)
        self.calls.append((method, inner))
        answer = self.answers.pop(0)
        if isinstance(answer, VCenterUnavailable):
            raise answer
        return read(etree.fromstring(f'<answer xmlns="urn:vim25" {XSI}>{answer}</answer>'))

    def record_good_answer(self, operation: str, number: int) -> None:
        assert (operation, number) == ("names", self.number)

    async def handle_refusal(self, operation: str, number: int, _: str) -> SessionEnded:
        return SessionEnded(f"{operation} ended {number}")

    def build_unreadable_error(self, problem: str) -> UnreadableXml:
        return UnreadableXml(problem)

    async def take_turn(self) -> None:
        self.turns += 1


def shown(ref: Ref, **properties: str | Ref) -> str:
    values = "".join(f"<propSet><name>{path}</name>{_value(value)}</propSet>" for path, value in properties.items())
    return f'<objects><obj type="{ref.type}">{ref.id}</obj>{values}</objects>'


def _value(value: str | Ref) -> str:
    return f'<val type="{value.type}">{value.id}</val>' if isinstance(value, Ref) else f"<val>{value}</val>"


def withheld(ref: Ref, fault: str, *paths: str) -> str:
    missing = "".join(
        f'<missingSet><path>{path}</path><fault><fault xsi:type="{fault}"/></fault></missingSet>' for path in paths
    )
    return f'<objects><obj type="{ref.type}">{ref.id}</obj>{missing}</objects>'


def answer(*objects: str, token: str = "") -> str:
    return f"<returnval>{f'<token>{token}</token>' if token else ''}{''.join(objects)}</returnval>"


async def fetch(session: FakeSession, *refs: Ref) -> dict[Ref, Entity]:
    return await fetch_entities(cast(VimSession, session), refs or (VM,), session.take_turn, 3.0)


@pytest.mark.parametrize(
    ("shows", "entities"),
    [
        (shown(VM, name="a%2fb", parent=FOLDER), {VM: Entity("a%2fb", FOLDER, True)}),
        (shown(VM, name="a", parentVApp=VAPP), {VM: Entity("a", VAPP, True)}),
        (shown(VM, name="a", parent=FOLDER, parentVApp=VAPP), {VM: Entity("a", FOLDER, True)}),
        (shown(FOLDER, name="Datacenters"), {FOLDER: Entity("Datacenters", None, False)}),
        (withheld(FOLDER, "NoPermission", "name", "parent"), {FOLDER: Entity(None, None, True)}),
        (withheld(VM, "NoPermission", "name", "parent", "parentVApp"), {VM: Entity(None, None, True)}),
        (withheld(VM, "ManagedObjectNotFound", "name", "parent"), {}),
        (shown(VM, name="x" * 1_001, parent=FOLDER), {VM: Entity(None, FOLDER, True)}),
        (shown(VM, name="  "), {VM: Entity(None, None, False)}),
        ("", {}),
    ],
)
async def test_an_object_is_what_vcenter_shows_of_it(shows: str, entities: dict[Ref, Entity]) -> None:
    assert await fetch(FakeSession(answer(shows))) == entities


async def test_nothing_at_all_is_an_answer_too() -> None:
    assert await fetch(FakeSession("")) == {}


async def test_an_answer_in_parts_is_read_to_its_end_with_a_turn_before_each_further_request() -> None:
    session = FakeSession(answer(shown(VM, name="a", parent=FOLDER), token="t1"), answer(shown(FOLDER, name="vm")))
    assert await fetch(session) == {VM: Entity("a", FOLDER, True), FOLDER: Entity("vm", None, False)}
    assert session.calls[1] == ("ContinueRetrievePropertiesEx", "<token>t1</token>")
    assert session.turns == 1


async def test_each_object_has_traversals_of_its_own_names_and_only_vms_lie_in_vapps() -> None:
    session = FakeSession("")
    await fetch(session, VM, FOLDER)
    spec = etree.fromstring(f"<x {XSI}>{session.calls[0][1]}</x>")
    names = [[name.text for name in one.iter("name")] for one in spec.iter("objectSet")]
    paths = [[path.text for path in one.iter("path")] for one in spec.iter("objectSet")]
    assert names == [["up0", "up0", "up0"], ["up1", "up1"]]
    assert paths == [["parent", "parentVApp"], ["parent"]]


async def test_a_session_that_has_ended_is_no_answer() -> None:
    with pytest.raises(SessionEnded):
        await fetch(FakeSession(answer(withheld(VM, "NotAuthenticated", "name", "parent"))))


ERRORS: dict[str, tuple[VCenterUnavailable, Any]] = {
    "an object that isn't there": (SoapFault("x", "ManagedObjectNotFound", ""), True),
    "no permission": (SoapFault("x", "NoPermission", ""), True),
    "too large": (AnswerTooLarge("x"), True),
    "unreadable": (UnreadableXml("x"), True),
    "a fault of vCenter's own": (SoapFault("x", "SystemError", ""), False),
    "a fault without a type": (SoapFault("x", None, ""), False),
    "no answer in time": (NoAnswer("x"), None),
    "down": (VCenterUnavailable("x"), None),
}


@pytest.mark.parametrize("error", ERRORS)
async def test_what_may_concern_single_objects_is_told_from_what_does_not(error: str) -> None:
    raised, is_final = ERRORS[error]
    with pytest.raises(VCenterUnavailable) as caught:
        await fetch(FakeSession(raised))
    assert getattr(caught.value, "is_final", None) is is_final
    assert (caught.value is raised) is (is_final is None)
    assert isinstance(caught.value, EntitiesRefused) is (is_final is not None)
