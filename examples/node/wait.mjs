// Request a watch and wait for its final event: node wait.mjs TASK
// Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
import { connect } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";

const servers = process.env.BRIDGE_NATS_URL ?? "nats://127.0.0.1:4222";

/** Return the final event of a watch of `task`, whether the task runs, has ended or is already watched. */
async function waitForFinalEvent(nc, task) {
  const request = { task, labels: { requested_by: "examples/node/wait.mjs" } };
  const response = await nc.request("vcenter.tasks.api.watch", JSON.stringify(request), { timeout: 25_000 });
  const reply = response.json();
  if (reply.error) {
    console.error(`${reply.error.code}: ${reply.error.message}`);
    process.exit(2);
  }
  // Without a name this is an ordered consumer. It reads from the start (deliver policy all), because the task may have
  // ended already.
  const consumer = await jetstream(nc).consumers.get(reply.stream, { filter_subjects: reply.events });
  for await (const message of await consumer.consume()) {
    const event = message.json();
    console.error(event.data.kind, event.data.status, event.data.progress?.percent ?? "");
    // The task may have been watched before, so take the final event of this watch only.
    if (event.data.final && event.data.watch.id === reply.watch.id) return event;
  }
}

const nc = await connect({ servers, maxReconnectAttempts: -1 });
const event = await waitForFinalEvent(nc, process.argv[2]);
console.log(JSON.stringify(event));
await nc.close();
process.exitCode = event.data.kind === "abandoned" ? 3 : event.outcome === "succeeded" ? 0 : 1;
