"""Start a workflow for every ending of a task with an HTTP POST of the event to WORKFLOW_URL. Needs nats-py only.

A task ends as `completed` (succeeded, failed, canceled) or `abandoned` (its end can't be known); `outcome` says which.
The endings from the first start on are handled, also those from while no worker ran.

You can run several workers; they share one durable consumer. A worker acks an event after the work, so after a crash
the event is redelivered. A bucket keeps the ids of handled events, so that a redelivered event starts nothing. Both are
created unless an operator made them, as with deploy/nats: examples/README.md has the commands.
"""

import asyncio
import contextlib
import json
import os
import urllib.request

import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.kv import KeyValue

NATS_URL = os.environ.get("BRIDGE_NATS_URL", "nats://127.0.0.1:4222")
JS_DOMAIN = os.environ.get("BRIDGE_NATS_JS_DOMAIN")
USER = os.environ.get("BRIDGE_NATS_USER")
WORKFLOW_URL = os.environ["WORKFLOW_URL"]
STREAM = "VCENTER_TASKS_EVENTS"
ENDINGS = ["vcenter.tasks.events.*.*.completed.*", "vcenter.tasks.events.*.*.abandoned.*"]
CONSUMER = ConsumerConfig(
    durable_name="workflows",
    deliver_policy=DeliverPolicy.NEW,
    ack_policy=AckPolicy.EXPLICIT,
    ack_wait=60,
    max_deliver=1000,  # an event that no worker can handle is given up
    filter_subjects=ENDINGS,
)
KEEP_IDS_S = 14 * 86_400  # longer than events are kept


def start_workflow(event: dict) -> None:
    """Start the workflow, or raise OSError. With the key, the receiver can ignore a second start too."""
    headers = {"Content-Type": "application/cloudevents+json", "Idempotency-Key": event["id"]}
    request = urllib.request.Request(WORKFLOW_URL, json.dumps(event).encode(), headers)
    urllib.request.urlopen(request, timeout=20).close()


async def connect() -> nats.NATS:
    """Connect, as the user of the environment if there is one. By deploy/nats each user has inboxes of its own."""
    if USER is None:
        return await nats.connect(NATS_URL, max_reconnect_attempts=-1)
    login = {"user": USER, "password": os.environ["BRIDGE_NATS_PASSWORD"], "inbox_prefix": f"_INBOX_{USER}"}
    return await nats.connect(NATS_URL, max_reconnect_attempts=-1, **login)


async def open_bucket(js: JetStreamContext) -> KeyValue:
    """Open the bucket that all workers share, in whichever language; the first one creates it."""
    try:
        return await js.key_value("workflows_started")
    except nats.js.errors.BucketNotFoundError:
        with contextlib.suppress(nats.js.errors.BadRequestError):  # another one has just created it
            await js.create_key_value(bucket="workflows_started", ttl=KEEP_IDS_S)
        return await js.key_value("workflows_started")


async def open_consumer(js: JetStreamContext) -> JetStreamContext.PullSubscription:
    """Pull from the durable that all workers share; the first one creates it."""
    try:
        await js.consumer_info(STREAM, "workflows")
    except nats.js.errors.NotFoundError:
        await js.add_consumer(STREAM, CONSUMER)
    return await js.pull_subscribe_bind("workflows", stream=STREAM)


async def main() -> None:
    nc = await connect()
    js = nc.jetstream(domain=JS_DOMAIN)
    handled = await open_bucket(js)
    events = await open_consumer(js)
    while True:
        try:
            (message,) = await events.fetch(1, timeout=30)
        except nats.errors.TimeoutError:
            continue
        event = json.loads(message.data)
        key = event["id"].replace("/", ".")  # every client library accepts this as a key
        try:
            if not await is_handled(handled, key):
                await asyncio.to_thread(start_workflow, event)
                await handled.put(key, b"")
        except OSError as error:  # the POST failed: try again later
            print(f"{event['id']}: {error}", flush=True)
            await message.nak(delay=2)
        else:
            await message.ack()
            print(f"{event['id']}: {event['outcome']}", flush=True)


async def is_handled(bucket: KeyValue, key: str) -> bool:
    try:
        await bucket.get(key)
    except nats.js.errors.KeyNotFoundError:
        return False
    return True


if __name__ == "__main__":
    asyncio.run(main())
