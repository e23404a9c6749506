"""The settings of the bridge. `load` is the only way from the environment to them."""

from .loader import load, read_log_format
from .models import NatsSettings, Settings, VCenterSettings
from .values import Listen, SecretFile

__all__ = ["Listen", "NatsSettings", "SecretFile", "Settings", "VCenterSettings", "load", "read_log_format"]
