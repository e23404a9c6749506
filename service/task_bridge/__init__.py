"""Watches vCenter tasks for everybody: a request over NATS in, every status change and exactly one ending out."""

__version__ = "1.0.0"
