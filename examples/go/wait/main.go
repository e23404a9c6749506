// Request a watch and wait for its final event: go run ./wait TASK
// Exit code: 0 succeeded, 1 failed or canceled, 2 refused, 3 abandoned.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type watchRef struct {
	ID string `json:"id"`
}

type reply struct {
	Error *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
	Stream string   `json:"stream"`
	Events string   `json:"events"`
	Watch  watchRef `json:"watch"`
}

type event struct {
	Outcome string `json:"outcome"`
	Data    struct {
		Kind   string   `json:"kind"`
		Status *string  `json:"status"`
		Final  bool     `json:"final"`
		Watch  watchRef `json:"watch"`
	} `json:"data"`
}

func main() {
	nc, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	os.Exit(waitFor(nc, os.Args[1]))
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

// waitFor prints the final event of a watch of the task, whether the task runs, has ended or is already watched.
func waitFor(nc *nats.Conn, task string) int {
	request, _ := json.Marshal(map[string]any{"task": task, "labels": map[string]string{"requested_by": "examples/go"}})
	answer, err := nc.Request("vcenter.tasks.api.watch", request, 25*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	var watch reply
	if err := json.Unmarshal(answer.Data, &watch); err != nil {
		log.Fatal(err)
	}
	if watch.Error != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", watch.Error.Code, watch.Error.Message)
		return 2
	}
	var last event
	body := readEvents(nc, watch.Stream, watch.Events, func(body []byte) bool {
		var one event
		if err := json.Unmarshal(body, &one); err != nil {
			log.Fatal(err)
		}
		last = one
		fmt.Fprintln(os.Stderr, one.Data.Kind)
		// The task may have been watched before, so take the final event of this watch only.
		return one.Data.Final && one.Data.Watch.ID == watch.Watch.ID
	})
	fmt.Println(string(body))
	switch {
	case last.Data.Kind == "abandoned":
		return 3
	case last.Outcome == "succeeded":
		return 0
	default:
		return 1
	}
}

// readEvents returns the first event that isLast accepts: it reads from the first event on, because the task may have
// ended already, then new ones. Direct gets read what is stored; the subscription only says when there is more. This
// needs no consumer, and so no permission to create one.
func readEvents(nc *nats.Conn, streamName, subject string, isLast func([]byte) bool) []byte {
	js, err := newJetStream(nc)
	if err != nil {
		log.Fatal(err)
	}
	news, err := nc.SubscribeSync(subject)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	stream, err := js.Stream(ctx, streamName)
	if err != nil {
		log.Fatal(err)
	}
	for sequence := uint64(1); ; {
		message, err := stream.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(subject))
		if err != nil { // there is no more, or NATS is away
			if !errors.Is(err, jetstream.ErrMsgNotFound) {
				fmt.Fprintln(os.Stderr, err)
			}
			_, _ = news.NextMsg(10 * time.Second)
			continue
		}
		if isLast(message.Data) {
			return message.Data
		}
		sequence = message.Sequence + 1
	}
}

func newJetStream(nc *nats.Conn) (jetstream.JetStream, error) {
	if domain := os.Getenv("BRIDGE_NATS_JS_DOMAIN"); domain != "" {
		return jetstream.NewWithDomain(nc, domain)
	}
	return jetstream.New(nc)
}
