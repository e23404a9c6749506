"""HTTP to vCenter: `CisSource` is the port `TaskSource` over the CIS tasks service.

source     the loop: what is due is asked for, as many requests at once as allowed
looks      what follows from an answer: shown, missing, gone, or nothing that helps
register   who is followed and what was found        followed   where each task is between two looks
lists      many tasks by few lists                   tasks      list, get and cancel
session    one session, begun anew when it ended     schedule   when to look at a task again
wire       the two renderings of vCenter's API       reading    from vCenter's JSON to a task

What it stands on (HTTP, budget, health, proof of absence) is in `link/`.
"""

from ..health import VCenterHealthTracker
from ..policy import PollPolicy, VCenterConfig
from .source import CisSource

__all__ = ["CisSource", "PollPolicy", "VCenterConfig", "VCenterHealthTracker"]
