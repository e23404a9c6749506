//! What both programs share: the connection.

use std::env;

/// Connects as the user of the environment, if there is one. By deploy/nats each user has inboxes of its own.
pub async fn connect() -> Result<async_nats::Client, async_nats::ConnectError> {
    let url = env::var("BRIDGE_NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into());
    let mut options = async_nats::ConnectOptions::new();
    if let Ok(user) = env::var("BRIDGE_NATS_USER") {
        let inbox = format!("_INBOX_{user}");
        let password = env::var("BRIDGE_NATS_PASSWORD").unwrap_or_default();
        options = options.user_and_password(user, password).custom_inbox_prefix(inbox);
    }
    options.connect(url).await
}

/// Returns JetStream, in the domain of the environment if there is one.
pub fn jetstream(client: async_nats::Client) -> async_nats::jetstream::Context {
    match env::var("BRIDGE_NATS_JS_DOMAIN") {
        Ok(domain) => async_nats::jetstream::with_domain(client, domain),
        Err(_) => async_nats::jetstream::new(client),
    }
}
