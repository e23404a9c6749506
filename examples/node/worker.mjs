// Start a workflow for every ending of a task with an HTTP POST of the event to WORKFLOW_URL.
//
// A task ends as `completed` (succeeded, failed, canceled) or `abandoned` (its end can't be known); `outcome` says which.
// The endings from the first start on are handled, also those from while no worker ran.
//
// You can run several workers; they share one durable consumer. A worker acks an event after the work, so after a crash
// the event is redelivered. A bucket keeps the ids of handled events, so that a redelivered event starts nothing. Both are
// created unless an operator made them, as with deploy/nats: examples/README.md has the commands.
import { connect, nanos } from "@nats-io/transport-node";
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";

const { BRIDGE_NATS_USER: user, BRIDGE_NATS_PASSWORD: pass, BRIDGE_NATS_JS_DOMAIN: domain } = process.env;
const servers = process.env.BRIDGE_NATS_URL ?? "nats://127.0.0.1:4222";
// By deploy/nats each user has inboxes of its own.
const login = user ? { user, pass, inboxPrefix: `_INBOX_${user}` } : {};
const stream = "VCENTER_TASKS_EVENTS";
const keepIdsMs = 14 * 86_400_000; // longer than events are kept

/** Start the workflow, or throw. With the key, the receiver can ignore a second start too. */
async function startWorkflow(event) {
  const headers = { "Content-Type": "application/cloudevents+json", "Idempotency-Key": event.id };
  const body = JSON.stringify(event);
  const signal = AbortSignal.timeout(20_000);
  const response = await fetch(process.env.WORKFLOW_URL, { method: "POST", headers, body, signal });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
}

const nc = await connect({ servers, maxReconnectAttempts: -1, ...login });
const js = jetstream(nc, { domain });
const manager = await jetstreamManager(nc, { domain, checkAPI: false });

/** Return the bucket of handled ids, which all workers share, in whichever language; the first one creates it. */
async function openBucket() {
  const isThere = await manager.streams.info("KV_workflows_started").then(() => true, () => false);
  const buckets = new Kvm(js);
  // A failed creation: another worker has just created it.
  if (!isThere) await buckets.create("workflows_started", { ttl: keepIdsMs }).catch(() => {});
  return buckets.open("workflows_started");
}

/** Return the durable consumer that all workers share; the first one creates it. */
async function openConsumer() {
  const isThere = await manager.consumers.info(stream, "workflows").then(() => true, () => false);
  if (!isThere) {
    await manager.consumers.add(stream, {
      durable_name: "workflows",
      filter_subjects: ["vcenter.tasks.events.*.*.completed.*", "vcenter.tasks.events.*.*.abandoned.*"],
      deliver_policy: DeliverPolicy.New,
      ack_policy: AckPolicy.Explicit,
      ack_wait: nanos(60_000),
      max_deliver: 1000, // an event that no worker can handle is given up
    });
  }
  return js.consumers.get(stream, "workflows");
}

const handled = await openBucket();
const consumer = await openConsumer();
for await (const message of await consumer.consume({ max_messages: 1 })) {
  const event = message.json();
  const key = event.id.replaceAll("/", "."); // every client library accepts this as a key
  try {
    if (!(await handled.get(key))) {
      await startWorkflow(event);
      await handled.put(key, "");
    }
    message.ack();
    console.log(`${event.id}: ${event.outcome}`);
  } catch (error) {
    console.log(`${event.id}: ${error.message}`);
    message.nak(2_000);
  }
}
