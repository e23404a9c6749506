"""NATS: streams, requests in, the service API, held watches, and the fenced journal of events."""
