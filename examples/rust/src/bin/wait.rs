//! Request a watch and wait for its final event: cargo run --bin wait TASK
//! Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.

use std::{env, error::Error, process::ExitCode, time::Duration};

use futures_util::StreamExt;
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let task = env::args().nth(1).ok_or("name a task")?;
    let client = example::connect().await?;
    let request = json!({"task": task, "labels": {"requested_by": "examples/rust"}}).to_string();
    let request = async_nats::Request::new().payload(request.into()).timeout(Some(Duration::from_secs(25)));
    let answer = client.send_request("vcenter.tasks.api.watch", request).await?;
    let reply: Value = serde_json::from_slice(&answer.payload)?;
    if let Some(error) = reply.get("error") {
        eprintln!("{}: {}", error["code"], error["message"]);
        return Ok(ExitCode::from(2));
    }
    let event = wait_for_final_event(client, &reply).await?;
    println!("{event}");
    Ok(match (event["data"]["kind"].as_str(), event["outcome"].as_str()) {
        (Some("abandoned"), _) => ExitCode::from(3),
        (_, Some("succeeded")) => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    })
}

/// Returns the final event of a watch: reads from the first event on, because the task may have ended already, then new
/// ones. Direct gets read what is stored; the subscription only says when there is more. This needs no consumer, and so
/// no permission to create one.
async fn wait_for_final_event(client: async_nats::Client, reply: &Value) -> Result<Value, Box<dyn Error>> {
    let subject = reply["events"].as_str().ok_or("no events")?.to_owned();
    let mut news = client.subscribe(subject.clone()).await?;
    let stream = example::jetstream(client).get_stream(reply["stream"].as_str().ok_or("no stream")?).await?;
    let mut sequence = 1;
    loop {
        let Ok(message) = stream.direct_get_next_for_subject(&subject, Some(sequence)).await else {
            // There is no more, or NATS is away.
            let _ = tokio::time::timeout(Duration::from_secs(10), news.next()).await;
            continue;
        };
        let event: Value = serde_json::from_slice(&message.payload)?;
        eprintln!("{} {}", event["data"]["kind"], event["data"]["status"]);
        // The task may have been watched before, so take the final event of this watch only.
        if event["data"]["final"] == true && event["data"]["watch"]["id"] == reply["watch"]["id"] {
            return Ok(event);
        }
        sequence = message.sequence + 1;
    }
}
