// Start a workflow for every ending of a task with an HTTP POST of the event to WORKFLOW_URL: go run ./worker
//
// A task ends as `completed` (succeeded, failed, canceled) or `abandoned` (its end can't be known); `outcome` says which.
// The endings from the first start on are handled, also those from while no worker ran.
//
// You can run several workers; they share one durable consumer. A worker acks an event after the work, so after a crash
// the event is redelivered. A bucket keeps the ids of handled events, so that a redelivered event starts nothing. Both
// are created unless an operator made them, as with deploy/nats: examples/README.md has the commands.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	stream  = "VCENTER_TASKS_EVENTS"
	keepIDs = 14 * 24 * time.Hour // longer than events are kept
)

var endings = []string{"vcenter.tasks.events.*.*.completed.*", "vcenter.tasks.events.*.*.abandoned.*"}

type event struct {
	ID      string `json:"id"`
	Outcome string `json:"outcome"`
}

func main() {
	nc, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	js, err := newJetStream(nc)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	handled, err := openBucket(ctx, js)
	if err != nil {
		log.Fatal(err)
	}
	consumer, err := openConsumer(ctx, js)
	if err != nil {
		log.Fatal(err)
	}
	for {
		message, err := consumer.Next(jetstream.FetchMaxWait(30 * time.Second))
		if err != nil { // nothing came, or NATS is away
			continue
		}
		handle(ctx, handled, message)
	}
}

// handle starts the workflow of an event, unless that was done, and acks the event.
func handle(ctx context.Context, handled jetstream.KeyValue, message jetstream.Msg) {
	var one event
	if err := json.Unmarshal(message.Data(), &one); err != nil {
		log.Fatal(err)
	}
	key := strings.ReplaceAll(one.ID, "/", ".") // every client library accepts this as a key
	_, err := handled.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		if err = startWorkflow(one.ID, message.Data()); err == nil {
			_, err = handled.Put(ctx, key, nil)
		}
	}
	if err != nil { // try again later
		fmt.Printf("%s: %v\n", one.ID, err)
		_ = message.NakWithDelay(2 * time.Second)
		return
	}
	_ = message.Ack()
	fmt.Printf("%s: %s\n", one.ID, one.Outcome)
}

// startWorkflow POSTs the event. With the key, the receiver can ignore a second start too.
func startWorkflow(id string, body []byte) error {
	request, err := http.NewRequest(http.MethodPost, os.Getenv("WORKFLOW_URL"), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/cloudevents+json")
	request.Header.Set("Idempotency-Key", id)
	client := http.Client{Timeout: 20 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("HTTP %d", response.StatusCode)
	}
	return nil
}

func openBucket(ctx context.Context, js jetstream.JetStream) (jetstream.KeyValue, error) {
	bucket, err := js.KeyValue(ctx, "workflows_started")
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		// A failed creation: another worker has just created it.
		_, _ = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "workflows_started", TTL: keepIDs})
		return js.KeyValue(ctx, "workflows_started")
	}
	return bucket, err
}

// openConsumer returns the durable consumer that all workers share.
func openConsumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	consumer, err := js.Consumer(ctx, stream, "workflows")
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
			Durable:        "workflows",
			FilterSubjects: endings,
			DeliverPolicy:  jetstream.DeliverNewPolicy,
			AckPolicy:      jetstream.AckExplicitPolicy,
			AckWait:        60 * time.Second,
			MaxDeliver:     1000, // an event that no worker can handle is given up
		})
	}
	return consumer, err
}

// connect logs in as the user of the environment, if there is one. By deploy/nats each user has inboxes of its own.
func connect() (*nats.Conn, error) {
	url := os.Getenv("BRIDGE_NATS_URL")
	if url == "" {
		url = nats.DefaultURL
	}
	options := []nats.Option{nats.MaxReconnects(-1)}
	if user := os.Getenv("BRIDGE_NATS_USER"); user != "" {
		options = append(options, nats.UserInfo(user, os.Getenv("BRIDGE_NATS_PASSWORD")))
		options = append(options, nats.CustomInboxPrefix("_INBOX_"+user))
	}
	return nats.Connect(url, options...)
}

func newJetStream(nc *nats.Conn) (jetstream.JetStream, error) {
	if domain := os.Getenv("BRIDGE_NATS_JS_DOMAIN"); domain != "" {
		return jetstream.NewWithDomain(nc, domain)
	}
	return jetstream.New(nc)
}
