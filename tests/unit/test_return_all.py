"""For how long a provider that refuses `return_all` is asked without."""

from __future__ import annotations

from task_bridge.simulator.options import ManualClock
from task_bridge.vcenter.cis.return_all import REMEMBERED_S, ReturnAllMemory


def test_a_refusal_is_remembered_for_an_hour_for_its_provider_alone() -> None:
    clock = ManualClock()
    memory = ReturnAllMemory(clock)
    assert memory.is_answered(["a:p"])
    memory.record_refusal("p")
    assert not memory.is_answered(["a:p"])
    assert not memory.is_answered(["b:p", "c:p"])
    assert memory.is_answered(["a:q"])
    clock.advance(REMEMBERED_S - 1)
    assert not memory.is_answered(["a:p"])
    clock.advance(1)
    assert memory.is_answered(["a:p"])


def test_a_task_whose_answer_was_too_large_is_asked_alone_without() -> None:
    memory = ReturnAllMemory(ManualClock())
    memory.record_refusal("a:p")
    assert not memory.is_answered(["a:p"])
    assert memory.is_answered(["b:p"])
    assert memory.is_answered(["a:p", "b:p"])  # a list that is too large is split


def test_ids_without_a_provider_share_one() -> None:
    memory = ReturnAllMemory(ManualClock())
    memory.record_refusal("")
    assert not memory.is_answered(["odd"])
    assert memory.is_answered(["a:p"])


def test_the_memory_is_bounded() -> None:
    memory = ReturnAllMemory(ManualClock())
    for number in range(10_000):
        memory.record_refusal(f"provider-{number}")
    assert not memory.is_answered(["a:provider-9999"])
    assert len(memory._refused_until) <= 1_000
