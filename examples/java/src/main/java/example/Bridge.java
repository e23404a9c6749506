package example;

import io.nats.client.Connection;
import io.nats.client.JetStreamOptions;
import io.nats.client.Nats;
import io.nats.client.Options;
import java.io.IOException;

/** What both programs share: the connection. */
final class Bridge {
    private Bridge() {}

    /** Connects as the user of the environment, if there is one. By deploy/nats each user has inboxes of its own. */
    static Connection connect() throws IOException, InterruptedException {
        String url = System.getenv().getOrDefault("BRIDGE_NATS_URL", "nats://127.0.0.1:4222");
        Options.Builder options = new Options.Builder().server(url).maxReconnects(-1);
        String user = System.getenv("BRIDGE_NATS_USER");
        if (user != null) {
            options.userInfo(user, System.getenv("BRIDGE_NATS_PASSWORD")).inboxPrefix("_INBOX_" + user + ".");
        }
        return Nats.connect(options.build());
    }

    /** The JetStream domain of the environment, if there is one. */
    static JetStreamOptions jetStream() {
        return JetStreamOptions.builder().domain(System.getenv("BRIDGE_NATS_JS_DOMAIN")).build();
    }
}
