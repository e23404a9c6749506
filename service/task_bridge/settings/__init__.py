"""The settings of the bridge. `load` is the only way from the environment to them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deliveries import DeliverySettings
    from .loader import load, read_log_format
    from .models import Settings, VCenterSettings
    from .nats import NatsSettings
    from .values import Listen, SecretFile

__all__ = [
    "DeliverySettings",
    "Listen",
    "NatsSettings",
    "SecretFile",
    "Settings",
    "VCenterSettings",
    "load",
    "read_log_format",
]

_MODULES = {
    "DeliverySettings": "deliveries",
    "load": "loader",
    "read_log_format": "loader",
    "Settings": "models",
    "VCenterSettings": "models",
    "NatsSettings": "nats",
    "Listen": "values",
    "SecretFile": "values",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: clients have the settings of NATS alone, and are installed without pydantic."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
