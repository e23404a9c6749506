// Request a watch and wait for its final event: node wait.mjs TASK
// Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
import { connect, deadline } from "@nats-io/transport-node";
import { jetstreamManager } from "@nats-io/jetstream";

const { BRIDGE_NATS_USER: user, BRIDGE_NATS_PASSWORD: pass, BRIDGE_NATS_JS_DOMAIN: domain } = process.env;
const servers = process.env.BRIDGE_NATS_URL ?? "nats://127.0.0.1:4222";
// By deploy/nats each user has inboxes of its own.
const login = user ? { user, pass, inboxPrefix: `_INBOX_${user}` } : {};

/** Return the final event of a watch of `task`, whether the task runs, has ended or is already watched. */
async function waitForFinalEvent(nc, task) {
  const request = { task, labels: { requested_by: "examples/node/wait.mjs" } };
  const response = await nc.request("vcenter.tasks.api.watch", JSON.stringify(request), { timeout: 25_000 });
  const reply = response.json();
  if (reply.error) {
    console.error(`${reply.error.code}: ${reply.error.message}`);
    process.exit(2);
  }
  for await (const event of readEvents(nc, reply.stream, reply.events)) {
    console.error(event.data.kind, event.data.status, event.data.progress?.percent ?? "");
    // The task may have been watched before, so take the final event of this watch only.
    if (event.data.final && event.data.watch.id === reply.watch.id) return event;
  }
}

/**
 * Yield the events of `subject` from the first on, because the task may have ended already, and go on with new ones.
 * Direct gets read what is stored; the subscription only says when there is more. This needs no consumer, and so no
 * permission to create one.
 */
async function* readEvents(nc, stream, subject) {
  const { direct } = await jetstreamManager(nc, { domain, checkAPI: false });
  let arrived;
  let news = new Promise((resolve) => (arrived = resolve));
  nc.subscribe(subject, { callback: () => arrived() });
  for (let seq = 1; ; ) {
    const message = await direct.getMessage(stream, { seq, next_by_subj: subject }).catch(() => null); // NATS is away
    if (message) {
      seq = message.seq + 1;
      yield message.json();
    } else {
      await deadline(news, 10_000).catch(() => {});
      news = new Promise((resolve) => (arrived = resolve));
    }
  }
}

const nc = await connect({ servers, maxReconnectAttempts: -1, ...login });
const event = await waitForFinalEvent(nc, process.argv[2]);
console.log(JSON.stringify(event));
await nc.close();
process.exitCode = event.data.kind === "abandoned" ? 3 : event.outcome === "succeeded" ? 0 : 1;
