"""HTTP to vCenter: `CisSource` is the port `TaskSource` over the CIS tasks service."""

from .config import LookPolicy, VCenterSettings
from .health import Health
from .source import CisSource

__all__ = ["CisSource", "Health", "LookPolicy", "VCenterSettings"]
