"""Request a watch and wait for its final event: `python wait.py TASK`. Needs nats-py only.

Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator

import nats

NATS_URL = os.environ.get("BRIDGE_NATS_URL", "nats://127.0.0.1:4222")
JS_DOMAIN = os.environ.get("BRIDGE_NATS_JS_DOMAIN")
USER = os.environ.get("BRIDGE_NATS_USER")


async def connect() -> nats.NATS:
    """Connect, as the user of the environment if there is one. By deploy/nats each user has inboxes of its own."""
    if USER is None:
        return await nats.connect(NATS_URL, max_reconnect_attempts=-1)
    login = {"user": USER, "password": os.environ["BRIDGE_NATS_PASSWORD"], "inbox_prefix": f"_INBOX_{USER}"}
    return await nats.connect(NATS_URL, max_reconnect_attempts=-1, **login)


async def wait_for_final_event(nc: nats.NATS, task: str) -> dict:
    """Return the final event of a watch of `task`, whether the task runs, has ended or is already watched."""
    request = {"task": task, "labels": {"requested_by": "examples/python/wait.py"}}
    response = await nc.request("vcenter.tasks.api.watch", json.dumps(request).encode(), timeout=25)
    reply = json.loads(response.data)
    if "error" in reply:
        print(f"{reply['error']['code']}: {reply['error']['message']}", file=sys.stderr)
        sys.exit(2)
    async for event in read_events(nc, reply["stream"], reply["events"]):
        data = event["data"]
        print(data["kind"], data["status"], (data["progress"] or {}).get("percent"), file=sys.stderr)
        # The task may have been watched before, so take the final event of this watch only.
        if data["final"] and data["watch"]["id"] == reply["watch"]["id"]:
            return event
    raise AssertionError("the events of a watch end with a final one")


async def read_events(nc: nats.NATS, stream: str, subject: str) -> AsyncIterator[dict]:
    """Yield the events of `subject`: from the first on, because the task may have ended already, then new ones.

    Direct gets read what is stored; the subscription only says when there is more. This needs no consumer, and so no
    permission to create one.
    """
    js = nc.jetstream(domain=JS_DOMAIN)
    news, sequence = await nc.subscribe(subject), 1
    while True:
        try:
            message = await js.get_msg(stream, seq=sequence, subject=subject, next=True, direct=True)
        except nats.errors.Error:  # there is no more, or NATS is away
            with contextlib.suppress(nats.errors.TimeoutError):
                await news.next_msg(timeout=10)
        else:
            sequence = message.seq + 1
            yield json.loads(message.data)


async def main(task: str) -> int:
    nc = await connect()
    try:
        event = await wait_for_final_event(nc, task)
    finally:
        await nc.close()
    print(json.dumps(event))
    return 3 if event["data"]["kind"] == "abandoned" else 0 if event["outcome"] == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
