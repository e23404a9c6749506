"""Classic tasks (`task-123`) of a vCenter, over SOAP at `/sdk`: `VimSource` follows them.

source      the loop, and the listener that waits for updates
transport   what the view lists, and when a task is polled by itself: the port `PollTransport`
poller      what follows from updates and answers     push        one collector, one view, one wait
questions   the questions of VMs, polled separately while a VM is locked
unshown     polls of tasks that push doesn't show
api         the API's methods that are used           taskinfo    from TaskInfo to a task
inventory   objects of the inventory, their names and paths
session     one session of its own                    soap        envelopes and faults

HTTP, budget, health, absences and the lifecycle of a tracked task are in `vcenter/`, as for CIS tasks.
"""

from .source import VimSource

__all__ = ["VimSource"]
