"""Starts a workflow on every `completed` event, by an HTTP POST of the event to WORKFLOW_URL. Needs nats-py only.

Run as many as you like: they share one durable consumer. The event is acked after the work, so a crash repeats it;
the ids of events that were worked on are remembered in a bucket, so that a repeated one starts nothing.
"""

import asyncio
import json
import os
import urllib.request

import nats
from nats.js.api import AckPolicy, ConsumerConfig

NATS_URL = os.environ.get("BRIDGE_NATS_URL", "nats://127.0.0.1:4222")
WORKFLOW_URL = os.environ["WORKFLOW_URL"]
STREAM = "VCENTER_TASKS_EVENTS"
COMPLETED = "vcenter.tasks.events.*.*.completed.*"
REMEMBERED_S = 14 * 86_400  # longer than events are kept


def start_workflow(event: dict) -> None:
    """Raises when the workflow wasn't started. A receiver that knows the key starts nothing twice either."""
    headers = {"Content-Type": "application/cloudevents+json", "Idempotency-Key": event["id"]}
    request = urllib.request.Request(WORKFLOW_URL, json.dumps(event).encode(), headers)
    urllib.request.urlopen(request, timeout=20).close()


async def main() -> None:
    nc = await nats.connect(NATS_URL, max_reconnect_attempts=-1)
    js = nc.jetstream()
    done = await js.create_key_value(bucket="workflows_started", ttl=REMEMBERED_S)
    config = ConsumerConfig(durable_name="workflows", ack_policy=AckPolicy.EXPLICIT, ack_wait=60)
    events = await js.pull_subscribe(COMPLETED, durable="workflows", stream=STREAM, config=config)
    while True:
        try:
            (message,) = await events.fetch(1, timeout=30)
        except nats.errors.TimeoutError:
            continue
        event = json.loads(message.data)
        key = event["id"].replace("/", ".")  # what a key of a bucket may be in every client library
        try:
            if not await remembers(done, key):
                await asyncio.to_thread(start_workflow, event)
                await done.put(key, b"")
        except OSError as error:  # of the POST: try again later
            print(f"{event['id']}: {error}", flush=True)
            await message.nak(delay=2)
        else:
            await message.ack()
            print(f"{event['id']}: {event['outcome']}", flush=True)


async def remembers(bucket: nats.js.kv.KeyValue, key: str) -> bool:
    try:
        await bucket.get(key)
    except nats.js.errors.KeyNotFoundError:
        return False
    return True


if __name__ == "__main__":
    asyncio.run(main())
