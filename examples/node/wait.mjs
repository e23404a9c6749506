// Asks for a watch and waits for its ending: node wait.mjs TASK
// Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
import { connect } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";

const servers = process.env.BRIDGE_NATS_URL ?? "nats://127.0.0.1:4222";

/** The final event of a watch of `task`, whether the task runs, has ended or is watched already. */
async function endingOf(nc, task) {
  const request = { task, labels: { asked_by: "examples/node/wait.mjs" } };
  const answer = await nc.request("vcenter.tasks.api.watch", JSON.stringify(request), { timeout: 25_000 });
  const reply = answer.json();
  if (reply.error) {
    console.error(`${reply.error.code}: ${reply.error.message}`);
    process.exit(2);
  }
  // Without a name this is an ordered consumer, from the start (deliver policy all): the task may have ended already.
  const consumer = await jetstream(nc).consumers.get(reply.stream, { filter_subjects: reply.events });
  for await (const message of await consumer.consume()) {
    const event = message.json();
    console.error(event.data.kind, event.data.status, event.data.progress?.percent ?? "");
    // The task may have been watched before: only this watch's ending counts.
    if (event.data.final && event.data.watch.id === reply.watch.id) return event;
  }
}

const nc = await connect({ servers, maxReconnectAttempts: -1 });
const event = await endingOf(nc, process.argv[2]);
console.log(JSON.stringify(event));
await nc.close();
process.exitCode = event.data.kind === "abandoned" ? 3 : event.outcome === "succeeded" ? 0 : 1;
