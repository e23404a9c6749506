// Starts a workflow on every `completed` event, by an HTTP POST of the event to WORKFLOW_URL.
//
// Run as many as you like: they share one durable consumer. The event is acked after the work, so a crash repeats it;
// the ids of events that were worked on are remembered in a bucket, so that a repeated one starts nothing.
import { connect, nanos } from "@nats-io/transport-node";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";

const servers = process.env.BRIDGE_NATS_URL ?? "nats://127.0.0.1:4222";
const stream = "VCENTER_TASKS_EVENTS";
const rememberedMs = 14 * 86_400_000; // longer than events are kept

/** Throws when the workflow wasn't started. A receiver that knows the key starts nothing twice either. */
async function startWorkflow(event) {
  const headers = { "Content-Type": "application/cloudevents+json", "Idempotency-Key": event.id };
  const body = JSON.stringify(event);
  const signal = AbortSignal.timeout(20_000);
  const answer = await fetch(process.env.WORKFLOW_URL, { method: "POST", headers, body, signal });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
}

const nc = await connect({ servers, maxReconnectAttempts: -1 });
const done = await new Kvm(nc).create("workflows_started", { ttl: rememberedMs });
await (await jetstreamManager(nc)).consumers.add(stream, {
  durable_name: "workflows",
  filter_subject: "vcenter.tasks.events.*.*.completed.*",
  ack_policy: AckPolicy.Explicit,
  ack_wait: nanos(60_000),
});
const consumer = await jetstream(nc).consumers.get(stream, "workflows");
for await (const message of await consumer.consume({ max_messages: 1 })) {
  const event = message.json();
  const key = event.id.replaceAll("/", "."); // what a key of a bucket may be in every client library
  try {
    if (!(await done.get(key))) {
      await startWorkflow(event);
      await done.put(key, "");
    }
    message.ack();
    console.log(`${event.id}: ${event.outcome}`);
  } catch (error) {
    console.log(`${event.id}: ${error.message}`);
    message.nak(2_000);
  }
}
