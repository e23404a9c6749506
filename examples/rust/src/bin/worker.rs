//! Start a workflow for every ending of a task with an HTTP POST of the event to WORKFLOW_URL: cargo run --bin worker
//!
//! A task ends as `completed` (succeeded, failed, canceled) or `abandoned` (its end can't be known); `outcome` says which.
//! The endings from the first start on are handled, also those from while no worker ran.
//!
//! You can run several workers; they share one durable consumer. A worker acks an event after the work, so after a crash
//! the event is redelivered. A bucket keeps the ids of handled events, so that a redelivered event starts nothing. Both
//! are created unless an operator made them, as with deploy/nats: examples/README.md has the commands.

use std::{env, error::Error, time::Duration};

use async_nats::jetstream::{AckKind, Context, Message, consumer, kv};
use futures_util::StreamExt;
use serde_json::Value;

const STREAM: &str = "VCENTER_TASKS_EVENTS";
const ENDINGS: [&str; 2] = ["vcenter.tasks.events.*.*.completed.*", "vcenter.tasks.events.*.*.abandoned.*"];
const KEEP_IDS: Duration = Duration::from_secs(14 * 86_400); // longer than events are kept

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let js = example::jetstream(example::connect().await?);
    let handled = open_bucket(&js).await?;
    let consumer = open_consumer(&js).await?;
    loop {
        // An error: nothing came, or NATS is away.
        let Ok(mut batch) = consumer.fetch().max_messages(1).expires(Duration::from_secs(30)).messages().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        while let Some(Ok(message)) = batch.next().await {
            let event: Value = serde_json::from_slice(&message.payload)?;
            match handle(&handled, &message, &event).await {
                Ok(()) => println!("{}: {}", event["id"], event["outcome"]),
                Err(error) => println!("{}: {error}", event["id"]),
            }
        }
    }
}

/// Starts the workflow of an event, unless that was done, and acks the event; if that fails, it comes again.
async fn handle(handled: &kv::Store, message: &Message, event: &Value) -> Result<(), Box<dyn Error>> {
    let id = event["id"].as_str().ok_or("no id")?.to_owned();
    let key = id.replace('/', "."); // every client library accepts this as a key
    let done = async {
        if handled.get(&key).await?.is_none() {
            let body = message.payload.to_vec();
            tokio::task::spawn_blocking(move || start_workflow(&id, &body)).await??;
            handled.put(&key, "".into()).await?;
        }
        Ok::<(), Box<dyn Error>>(())
    }
    .await;
    let ack = if done.is_ok() { AckKind::Ack } else { AckKind::Nak(Some(Duration::from_secs(2))) };
    message.ack_with(ack).await.map_err(|error| error.to_string())?;
    done
}

/// POSTs the event. With the key, the receiver can ignore a second start too.
fn start_workflow(id: &str, body: &[u8]) -> Result<(), ureq::Error> {
    let url = env::var("WORKFLOW_URL").unwrap_or_default();
    let request = ureq::post(url)
        .config()
        .timeout_global(Some(Duration::from_secs(20)))
        .build()
        .header("Content-Type", "application/cloudevents+json")
        .header("Idempotency-Key", id);
    request.send(body).map(|_| ())
}

/// Opens the bucket that all workers share, in whichever language; the first one creates it.
async fn open_bucket(js: &Context) -> Result<kv::Store, Box<dyn Error>> {
    if let Ok(bucket) = js.get_key_value("workflows_started").await {
        return Ok(bucket);
    }
    let config = kv::Config { bucket: "workflows_started".into(), max_age: KEEP_IDS, ..Default::default() };
    let _ = js.create_key_value(config).await; // a failed creation: another worker has just created it
    Ok(js.get_key_value("workflows_started").await?)
}

/// Opens the durable consumer that all workers share; the first one creates it.
async fn open_consumer(js: &Context) -> Result<consumer::PullConsumer, Box<dyn Error>> {
    let config = consumer::pull::Config {
        durable_name: Some("workflows".into()),
        filter_subjects: ENDINGS.map(Into::into).into(),
        deliver_policy: consumer::DeliverPolicy::New,
        ack_policy: consumer::AckPolicy::Explicit,
        ack_wait: Duration::from_secs(60),
        max_deliver: 1000, // an event that no worker can handle is given up
        ..Default::default()
    };
    if let Ok(consumer) = js.get_consumer_from_stream("workflows", STREAM).await {
        return Ok(consumer);
    }
    Ok(js.create_consumer_on_stream(config, STREAM).await?)
}
