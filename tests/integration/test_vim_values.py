"""Errors and results of classic tasks through the whole bridge: everything that vCenter says, within bounds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from structlog.testing import capture_logs

from lab import PASSWORD, USERNAME, Lab, until
from task_bridge.settings import VCenterSettings
from task_bridge.simulator import Script, SimulatedTarget, Step, faults, scenarios
from task_bridge.simulator.faults import Effect
from validity import check_event

SPACES = 'xmlns:vsan="urn:vsan"'
FAULT = (
    f'<fault {SPACES} xsi:type="vsan:CnsFault"><faultCause><fault xsi:type="FileLocked"><faultMessage>'
    '<key>lock.held</key><arg><key>1</key><value xsi:type="xsd:string">esx3</value></arg>'
    "<message>Held by esx3.</message></faultMessage>"
    "<file>[ds2] db/db.vmdk</file></fault><localizedMessage>The disk is locked.</localizedMessage></faultCause>"
    "<reason>attach failed</reason><backingDiskId/></fault><localizedMessage/>"
)
ERROR = {
    "type": "CnsFault",
    "message": "The disk is locked.",
    "messages": [
        {"id": None, "text": "The disk is locked.", "args": []},
        {"id": "lock.held", "text": "Held by esx3.", "args": ["esx3"]},
    ],
    "transient": None,
    "data": {"reason": "attach failed", "backingDiskId": ""},
}
BATCH = f"<volumeResults><volumeId><id>v-7</id></volumeId><fault>{FAULT}</fault></volumeResults>"
RESULT = {
    "_type": "CnsVolumeOperationBatchResult",
    "volumeResults": [
        {
            "volumeId": {"id": "v-7"},
            "fault": {
                "fault": {
                    "_type": "CnsFault",
                    "faultCause": {
                        "fault": {
                            "_type": "FileLocked",
                            "faultMessage": [
                                {
                                    "key": "lock.held",
                                    "arg": [{"key": "1", "value": "esx3"}],
                                    "message": "Held by esx3.",
                                }
                            ],
                            "file": "[ds2] db/db.vmdk",
                        },
                        "localizedMessage": "The disk is locked.",
                    },
                    "reason": "attach failed",
                    "backingDiskId": "",
                },
                "localizedMessage": "",
            },
        }
    ],
}  # fmt: skip
WAYS = pytest.mark.parametrize("way", ["push", "pull"])


def with_vim(lab: Lab, way: str) -> dict[str, VCenterSettings]:
    given = {"name": "lab", "url": lab.vcenter_url, "username": USERNAME, "password": PASSWORD, "vim": way}
    return {"lab": VCenterSettings.model_validate(given)}


def with_values(*, error: str = "", result: str = "", kind: str = "") -> Effect:
    """The answer that vCenter meant, with another error, and another result of the task whose result is `mark`."""
    sent = f' {SPACES} xsi:type="{kind}"' if kind else ""

    def reshape(body: bytes) -> bytes:
        text = body.decode()
        if error:
            text = re.sub(
                r"(<(?:val|error)[^>]*>)<fault xsi:type=\"Mark\">.*?</localizedMessage>", lambda m: m[1] + error, text
            )
        if result:
            text = re.sub(r"<(val|result) xsi:type=\"xsd:string\">mark</", lambda m: f"<{m[1]}{sent}>{result}</", text)
        return text.encode()

    return Effect(reshape=reshape)


def ends(status: str, after_s: float = 0.3, **fields: Any) -> Script:
    return Script((Step(after_s, {"status": status, **fields}),))


MARKED_ERROR = {"fault": "Mark", "message": "mark"}


async def final_of(lab: Lab, script: Script, within_s: float = 12.0) -> dict[str, Any]:
    task = lab.vcenter.create(script, flavour="vim")
    await lab.publish(task)
    event = await lab.ended(task, within_s)
    check_event(json.dumps(event).encode())
    return event["data"]  # type: ignore[no-any-return]


@WAYS
async def test_an_error_comes_with_its_causes_and_properties(lab: Lab, way: str) -> None:
    lab.vcenter.faults.add(with_values(error=FAULT))
    async with lab.bridge(vcenters=with_vim(lab, way)):
        await lab.listen()
        data = await final_of(lab, ends("FAILED", error=MARKED_ERROR))
    assert (data["outcome"], data["error"]) == ("failed", ERROR)


@WAYS
async def test_a_result_comes_as_a_whole_and_is_a_success_with_a_fault_inside_too(lab: Lab, way: str) -> None:
    lab.vcenter.faults.add(with_values(result=BATCH, kind="vsan:CnsVolumeOperationBatchResult"))
    async with lab.bridge(vcenters=with_vim(lab, way)):
        await lab.listen()
        data = await final_of(lab, ends("SUCCEEDED", result="mark"))
    assert (data["outcome"], data["result_state"], data["error"]) == ("succeeded", "inline", None)
    assert data["result"] == RESULT


async def test_a_task_in_the_history_has_its_error_and_result_too(lab: Lab) -> None:
    lab.vcenter.faults.add(with_values(error=FAULT))
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        with lab.vcenter.faults.during(faults.delayed(0.3), operation="WaitForUpdatesEx"):
            lab.vcenter.set(task, status="FAILED", error=MARKED_ERROR)
            lab.vcenter.retire(task)
            data = (await lab.ended(task))["data"]
    assert (data["outcome"], data["error"]) == ("failed", ERROR)


async def test_a_large_result_is_stored(lab: Lab) -> None:
    texts = "".join(f"<string>{number:090}</string>" for number in range(40_000))
    lab.vcenter.faults.add(with_values(result=texts, kind="ArrayOfString"))
    async with lab.bridge():
        await lab.listen()
        data = await final_of(lab, ends("SUCCEEDED", result="mark"))
    ref = data["result_ref"]
    assert (data["result_state"], ref["size"]) == ("stored", 40_000 * 93 + 1)
    stored = await (await lab.js.object_store(ref["bucket"])).get(ref["name"])
    assert stored.data is not None
    assert json.loads(stored.data)[-1] == f"{39_999:090}"


async def test_the_new_keys_say_who_started_a_task_when_and_after_which(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        vm = SimulatedTarget("VirtualMachine", "vm-3")
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=vm, user="LAB\\jo", parent="task-1")
        await lab.publish(task)
        first = (await until(lambda: lab.heard(task)))[0]["data"]
        lab.vcenter.set(task, status="SUCCEEDED")
        final = (await lab.ended(task))["data"]
    for data in (first, final):
        assert data["initiator"] == {"type": "user", "name": "LAB\\jo"}
        assert (data["user"], data["parent"], data["root"]) == ("LAB\\jo", "task-1", "task-1")
        assert data["queued_at"] <= data["started_at"]
        assert data["cancel_requested"] is False


async def test_a_task_whose_cancel_was_requested_says_so(lab: Lab) -> None:
    async with lab.bridge(allow_cancel=True):
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever(cancel_takes_s=0.5), flavour="vim", user=None)
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        await lab.ask("cancel", task)
        data = (await lab.ended(task))["data"]
    assert (data["outcome"], data["cancel_requested"]) == ("canceled", True)
    assert (data["user"], data["initiator"]) == (None, {"type": "system", "name": None})


@WAYS
@pytest.mark.parametrize(
    ("result", "reason"),
    [("<a>" * 40 + "</a>" * 40, "nested more than 32 deep"), ("<a/>" * 450_000, "400000 tags and attributes")],
    ids=["deep", "many"],
)
async def test_a_result_beyond_the_bounds_is_unavailable_and_the_log_says_why(
    lab: Lab, way: str, result: str, reason: str
) -> None:
    lab.vcenter.faults.add(with_values(result=result))
    with capture_logs() as logs:
        async with lab.bridge(vcenters=with_vim(lab, way)):
            await lab.listen()
            data = await final_of(lab, ends("SUCCEEDED", result="mark"), within_s=30)
    assert (data["outcome"], data["result_state"], data["result"]) == ("succeeded", "unavailable", None)
    (logged,) = [line for line in logs if line["event"] == "result_unavailable"]
    assert reason in logged["reason"]


async def test_an_error_beyond_the_bounds_costs_neither_the_end_nor_the_result(lab: Lab) -> None:
    huge = f'<fault xsi:type="CnsFault">{"<a/>" * 450_000}</fault>'
    lab.vcenter.faults.add(with_values(error=huge, result="<id>v-7</id>", kind="vsan:CnsVolumeId"))
    async with lab.bridge(vcenters=with_vim(lab, "pull")):
        await lab.listen()
        data = await final_of(lab, ends("FAILED", error=MARKED_ERROR), within_s=30)
    assert (data["outcome"], data["error"]["type"]) == ("failed", None)
    assert "too large" in data["error"]["message"]
