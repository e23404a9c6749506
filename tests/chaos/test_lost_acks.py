"""What was stored and not confirmed: the bridge finds out, and nothing is lost or told twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import time
from typing import Any

from chaos.checker import violations
from chaos.world import World, killed
from lab import until
from task_bridge.simulator import scenarios


async def asked(here: World, tasks: list[str]) -> None:
    await asyncio.gather(*(here.store(task, task, at=time.time()) for task in tasks))


async def over(here: World) -> None:
    """All is over within the time that some unanswered publishes take, and right."""
    deadline = time.monotonic() + 40
    while await here.left() != (0, 0):
        assert time.monotonic() < deadline, await here.left()
        await asyncio.sleep(0.1)
    await here.heard_everything()
    for replica in here.replicas:
        await until(lambda of=replica.process: of.hears_signals)  # type: ignore[misc] # of this replica
        assert await killed(here, replica, signal.SIGTERM) == 0
    assert violations(await here.account()) == []


def endings(here: World) -> list[dict[str, Any]]:
    bodies = [json.loads(heard.body) for heard in here.book.heard]
    return [body for body in bodies if body["data"].get("final")]


async def test_what_is_stored_and_not_confirmed_is_neither_lost_nor_told_twice(anywhere: World) -> None:
    await anywhere.begin(1)
    proxy, names, vcenter = anywhere.replicas[0].proxy, anywhere.names, anywhere.vcenter
    large, *others = (vcenter.create(scenarios.runs_forever()) for _ in range(5))
    await asked(anywhere, [large, others[0]])
    await until(lambda: len(anywhere.book.heard) == 2)
    # No watch loses more than two confirmations, each of which is waited for: the watch's and its first event's
    # here, the upload's and the final event's there.
    for stream, count in ((names.watches_stream, 2), (names.events_stream, 4), (f"OBJ_{names.results_bucket}", 1)):
        proxy.swallow(stream, count)
    vcenter.set(large, status="SUCCEEDED", result={"log": "x" * 600_000})
    vcenter.set(others[0], status="SUCCEEDED")
    await asyncio.gather(asked(anywhere, others[1:3]), anywhere.ask("watch", others[3], others[3]))
    for task in others[1:]:
        vcenter.set(task, status="SUCCEEDED")
    await over(anywhere)
    assert proxy.swallowed == 7
    assert len(endings(anywhere)) == 5
    (result,) = (end for end in endings(anywhere) if end["data"]["task"] == large)
    await uploaded(anywhere, result["data"]["result_ref"])


async def test_an_upload_that_was_cut_off_is_made_good_by_the_next_owner(here: World) -> None:
    await here.begin(1)
    task = here.vcenter.create(scenarios.large_result(size=8_000_000, after_s=0.5))
    await asked(here, [task])
    stream = f"OBJ_{here.names.results_bucket}"
    while not (await here.js.stream_info(stream)).state.messages:
        pass
    (replica,) = here.replicas
    await killed(here, replica)
    assert not endings(here)
    await replica.process.start()
    await until(lambda: endings(here), within_s=30)
    await uploaded(here, endings(here)[0]["data"]["result_ref"])
    await over(here)


async def uploaded(here: World, ref: dict[str, Any]) -> None:
    """What an event's `result_ref` names is there, and it is what the event says."""
    body = (await (await here.js.object_store(ref["bucket"])).get(ref["name"])).data or b""
    assert (len(body), hashlib.sha256(body).hexdigest()) == (ref["size"], ref["sha256"])
