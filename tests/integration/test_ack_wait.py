"""`ack_wait` of the server's consumer applies as it is there, also if an operator changes it while a replica runs."""

from __future__ import annotations

import time

import pytest
from nats.aio.msg import Msg

from lab import PREFIX, Lab, until
from task_bridge.jetstream.streams import IN_PROGRESS
from task_bridge.simulator import scenarios

WATCHES = "VCENTER_TASKS_WATCHES"


class Times:
    """When the messages of a subject came."""

    def __init__(self) -> None:
        self.all: list[float] = []

    async def note(self, message: Msg) -> None:
        assert message.data == IN_PROGRESS or message.subject.endswith(".replicas")
        self.all.append(time.monotonic())

    def come_within(self, interval_s: float) -> bool:
        """Whether the last five came within `interval_s` of each other."""
        last = self.all[-5:]
        return len(last) == 5 and last[-1] - last[0] < 4 * interval_s


async def deliveries(lab: Lab) -> int:
    """How many messages were delivered, again or for the first time."""
    delivered = (await lab.js.consumer_info(WATCHES, "bridge")).delivered
    assert delivered is not None
    return int(delivered.consumer_seq)


@pytest.mark.timeout(60)
async def test_heartbeats_and_reports_follow_an_ack_wait_that_an_operator_changes(lab: Lab) -> None:
    beats, reports = Times(), Times()
    await lab.client.subscribe(f"$JS.ACK.{WATCHES}.bridge.>", cb=beats.note)
    await lab.client.subscribe(f"{PREFIX}.internal.replicas", cb=reports.note)
    async with lab.bridge(ack_wait_s=60.0) as bridge:
        await lab.publish(lab.vcenter.create(scenarios.runs_forever()))
        await until(lambda: bridge.status.health().held == 1)
        assert not beats.all
        consumer = (await lab.js.consumer_info(WATCHES, "bridge")).config
        consumer.ack_wait = 3.0
        await lab.js.add_consumer(WATCHES, consumer)
        await until(lambda: beats.come_within(1.4) and reports.come_within(0.6))
        delivered = await deliveries(lab)
        count = len(beats.all)
        await until(lambda: len(beats.all) >= count + 7)  # longer than two times ack_wait
        assert await deliveries(lab) == delivered
