package example;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.nats.client.Connection;
import io.nats.client.ConsumerContext;
import io.nats.client.JetStreamApiException;
import io.nats.client.JetStreamManagement;
import io.nats.client.KeyValue;
import io.nats.client.KeyValueOptions;
import io.nats.client.Message;
import io.nats.client.api.AckPolicy;
import io.nats.client.api.ConsumerConfiguration;
import io.nats.client.api.DeliverPolicy;
import io.nats.client.api.KeyValueConfiguration;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;

/**
 * Starts a workflow for every ending of a task with an HTTP POST of the event to WORKFLOW_URL.
 *
 * <p>A task ends as `completed` (succeeded, failed, canceled) or `abandoned` (its end can't be known); `outcome` says
 * which. The endings from the first start on are handled, also those from while no worker ran.
 *
 * <p>You can run several workers; they share one durable consumer. A worker acks an event after the work, so after a
 * crash the event is redelivered. A bucket keeps the ids of handled events, so that a redelivered event starts nothing.
 * Both are created unless an operator made them, as with deploy/nats: examples/README.md has the commands.
 */
public final class Worker {
    private static final String STREAM = "VCENTER_TASKS_EVENTS";
    private static final String BUCKET = "workflows_started";
    private static final String[] ENDINGS = {
        "vcenter.tasks.events.*.*.completed.*", "vcenter.tasks.events.*.*.abandoned.*"
    };
    private static final Duration KEEP_IDS = Duration.ofDays(14); // longer than events are kept

    private static final HttpClient http = HttpClient.newHttpClient();

    public static void main(String[] args) throws Exception {
        Connection nc = Bridge.connect();
        KeyValue handled = openBucket(nc);
        ConsumerContext consumer = openConsumer(nc);
        while (true) {
            Message message = consumer.next(Duration.ofSeconds(30));
            if (message != null) {
                handle(handled, message);
            }
        }
    }

    /** Starts the workflow of an event, unless that was done, and acks the event. */
    private static void handle(KeyValue handled, Message message) throws InterruptedException {
        String body = new String(message.getData(), StandardCharsets.UTF_8);
        JsonObject event = JsonParser.parseString(body).getAsJsonObject();
        String id = event.get("id").getAsString();
        String key = id.replace("/", "."); // every client library accepts this as a key
        try {
            if (handled.get(key) == null) {
                startWorkflow(id, body);
                handled.put(key, "");
            }
        } catch (IOException | JetStreamApiException error) { // try again later
            System.out.println(id + ": " + error.getMessage());
            message.nakWithDelay(Duration.ofSeconds(2));
            return;
        }
        message.ack();
        System.out.println(id + ": " + event.get("outcome").getAsString());
    }

    /** POSTs the event. With the key, the receiver can ignore a second start too. */
    private static void startWorkflow(String id, String body) throws IOException, InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(URI.create(System.getenv("WORKFLOW_URL")))
                .header("Content-Type", "application/cloudevents+json")
                .header("Idempotency-Key", id)
                .timeout(Duration.ofSeconds(20))
                .version(HttpClient.Version.HTTP_1_1)
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
        int status = http.send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
        if (status / 100 != 2) {
            throw new IOException("HTTP " + status);
        }
    }

    /** Opens the bucket that all workers share, in whichever language; the first one creates it. */
    private static KeyValue openBucket(Connection nc) throws IOException, InterruptedException, JetStreamApiException {
        KeyValueOptions options = KeyValueOptions.builder().jetStreamOptions(Bridge.jetStream()).build();
        JetStreamManagement manager = nc.jetStreamManagement(Bridge.jetStream());
        try {
            manager.getStreamInfo("KV_" + BUCKET);
        } catch (JetStreamApiException missing) {
            KeyValueConfiguration config = KeyValueConfiguration.builder().name(BUCKET).ttl(KEEP_IDS).build();
            nc.keyValueManagement(options).create(config);
        }
        return nc.keyValue(BUCKET, options);
    }

    /** Opens the durable consumer that all workers share; the first one creates it. */
    private static ConsumerContext openConsumer(Connection nc) throws IOException, JetStreamApiException {
        JetStreamManagement manager = nc.jetStreamManagement(Bridge.jetStream());
        try {
            manager.getConsumerInfo(STREAM, "workflows");
        } catch (JetStreamApiException missing) {
            ConsumerConfiguration config = ConsumerConfiguration.builder()
                    .durable("workflows")
                    .filterSubjects(ENDINGS)
                    .deliverPolicy(DeliverPolicy.New)
                    .ackPolicy(AckPolicy.Explicit)
                    .ackWait(Duration.ofSeconds(60))
                    .maxDeliver(1000) // an event that no worker can handle is given up
                    .build();
            manager.createConsumer(STREAM, config);
        }
        return nc.getConsumerContext(STREAM, "workflows", Bridge.jetStream());
    }
}
