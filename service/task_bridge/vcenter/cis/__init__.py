"""CIS tasks of a vCenter, over HTTP and JSON: `CisSource` polls them.

source      the loop: start requests for what is due, within the budget
transport   when each task is polled: the port `PollTransport`
schedule    intervals, groups of tasks, and the agenda of polls (pure)
poller      polls by list and get, and what follows from each answer
api         list, get and cancel, and many tasks by few lists
return_all  which providers answer requests for all that they know (pure)
renderings  vCenter's JSON, in both renderings         session   one session, renewed when it ends

HTTP, budget, health, absences and the lifecycle of a tracked task are in `vcenter/`, as for classic tasks.
"""

from ..policy import PollPolicy, VCenterConfig
from .source import CisSource

__all__ = ["CisSource", "PollPolicy", "VCenterConfig"]
