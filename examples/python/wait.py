"""Request a watch and wait for its final event: `python wait.py TASK`. Needs nats-py only.

Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
"""

import asyncio
import json
import os
import sys

import nats

NATS_URL = os.environ.get("BRIDGE_NATS_URL", "nats://127.0.0.1:4222")


async def wait_for_final_event(nc: nats.NATS, task: str) -> dict:
    """Return the final event of a watch of `task`, whether the task runs, has ended or is already watched."""
    request = {"task": task, "labels": {"requested_by": "examples/python/wait.py"}}
    response = await nc.request("vcenter.tasks.api.watch", json.dumps(request).encode(), timeout=25)
    reply = json.loads(response.data)
    if "error" in reply:
        print(f"{reply['error']['code']}: {reply['error']['message']}", file=sys.stderr)
        sys.exit(2)
    # An ordered consumer reads from the start (deliver policy all), because the task may have ended already.
    events = await nc.jetstream().subscribe(reply["events"], stream=reply["stream"], ordered_consumer=True)
    async for message in events.messages:
        event = json.loads(message.data)
        data = event["data"]
        print(data["kind"], data["status"], (data["progress"] or {}).get("percent"), file=sys.stderr)
        # The task may have been watched before, so take the final event of this watch only.
        if data["final"] and data["watch"]["id"] == reply["watch"]["id"]:
            return event
    raise SystemExit("The connection was closed before the task ended.")


async def main(task: str) -> int:
    nc = await nats.connect(NATS_URL, max_reconnect_attempts=-1)
    try:
        event = await wait_for_final_event(nc, task)
    finally:
        await nc.close()
    print(json.dumps(event))
    return 3 if event["data"]["kind"] == "abandoned" else 0 if event["outcome"] == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
