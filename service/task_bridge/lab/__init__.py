"""A whole bridge on one machine: an own nats-server, a simulated vCenter, and the demo."""
