"""The settings of the bridge. `load` is the only way from the environment to them."""

from .deliveries import DeliverySettings
from .loader import load, read_log_format
from .models import NatsSettings, Settings, VCenterSettings
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
