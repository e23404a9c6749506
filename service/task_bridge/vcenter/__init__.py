"""HTTP to vCenter: `CisSource` is the port `TaskSource` over the CIS tasks service.

source     the loop: what is due is asked for, as many requests at once as allowed
looks      what follows from an answer: shown, missing, gone, or nothing that helps
register   who is followed and what was found        followed   where each task is between two looks
lists      many tasks by few lists                   tasks      list, get and cancel
session    one session, begun anew when it ended     gate       when a login may be tried
http       the only place that knows httpx           budget     how many requests a second
wire       the two renderings of vCenter's API       trouble    what goes wrong on the way, in sentences
schedule, absence, outage, reading, health           rules and state, each by itself
"""

from .config import LookPolicy, VCenterSettings
from .health import Health
from .source import CisSource

__all__ = ["CisSource", "Health", "LookPolicy", "VCenterSettings"]
