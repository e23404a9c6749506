"""Every setting of the bridge, and `load`, the only door from the environment to them."""

from .loader import load
from .models import NatsSettings, Settings, VCenterSettings
from .values import Listen, SecretFile

__all__ = ["Listen", "NatsSettings", "SecretFile", "Settings", "VCenterSettings", "load"]
