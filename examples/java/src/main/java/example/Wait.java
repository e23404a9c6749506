package example;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.nats.client.Connection;
import io.nats.client.JetStreamApiException;
import io.nats.client.JetStreamManagement;
import io.nats.client.Message;
import io.nats.client.api.MessageGetRequest;
import io.nats.client.Subscription;
import io.nats.client.api.MessageInfo;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;

/**
 * Requests a watch and waits for its final event: java -cp … example.Wait TASK
 *
 * <p>Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
 */
public final class Wait {
    public static void main(String[] args) throws Exception {
        int code;
        try (Connection nc = Bridge.connect()) {
            code = waitFor(nc, args[0]);
        }
        System.exit(code);
    }

    private static int waitFor(Connection nc, String task) throws Exception {
        JsonObject request = new JsonObject();
        request.addProperty("task", task);
        JsonObject labels = new JsonObject();
        labels.addProperty("requested_by", "examples/java");
        request.add("labels", labels);
        byte[] body = request.toString().getBytes(StandardCharsets.UTF_8);
        Message answer = nc.request("vcenter.tasks.api.watch", body, Duration.ofSeconds(25));
        if (answer == null) {
            throw new IOException("no answer on vcenter.tasks.api.watch");
        }
        JsonObject reply = parse(answer.getData());
        if (reply.has("error")) {
            JsonObject error = reply.getAsJsonObject("error");
            System.err.println(error.get("code").getAsString() + ": " + error.get("message").getAsString());
            return 2;
        }
        JsonObject event = waitForFinalEvent(nc, reply);
        System.out.println(event);
        if (event.getAsJsonObject("data").get("kind").getAsString().equals("abandoned")) {
            return 3;
        }
        return event.get("outcome").getAsString().equals("succeeded") ? 0 : 1;
    }

    /**
     * Returns the final event of a watch: reads from the first event on, because the task may have ended already, then
     * new ones. Direct gets read what is stored; the subscription only says when there is more. This needs no consumer,
     * and so no permission to create one.
     */
    private static JsonObject waitForFinalEvent(Connection nc, JsonObject reply) throws Exception {
        String stream = reply.get("stream").getAsString();
        String subject = reply.get("events").getAsString();
        JsonElement watch = reply.getAsJsonObject("watch").get("id");
        JetStreamManagement manager = nc.jetStreamManagement(Bridge.jetStream());
        Subscription news = nc.subscribe(subject);
        for (long sequence = 1; ; ) {
            MessageInfo message;
            try {
                message = manager.getMessage(stream, MessageGetRequest.nextForSubject(sequence, subject));
            } catch (JetStreamApiException | IOException nothing) { // there is no more, or NATS is away
                news.nextMessage(Duration.ofSeconds(10));
                continue;
            }
            JsonObject event = parse(message.getData());
            JsonObject data = event.getAsJsonObject("data");
            System.err.println(data.get("kind") + " " + data.get("status"));
            // The task may have been watched before, so take the final event of this watch only.
            if (data.get("final").getAsBoolean() && data.getAsJsonObject("watch").get("id").equals(watch)) {
                return event;
            }
            sequence = message.getSeq() + 1;
        }
    }

    private static JsonObject parse(byte[] body) {
        return JsonParser.parseString(new String(body, StandardCharsets.UTF_8)).getAsJsonObject();
    }
}
