"""A complete bridge on one machine: its own nats-server, a simulated vCenter, and the demo."""
