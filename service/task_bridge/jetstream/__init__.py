"""NATS: connection, streams, request consumer, service API, held watches, and the fenced journal of events."""
