"""Classic tasks (`task-123`) of a vCenter, over SOAP at `/sdk`: `source.VimSource` follows them.

source      the loop, and the listener that waits for updates
transport   what the view lists, and when a task is polled by itself: the port `PollTransport`
poller      what follows from updates and answers     push        one collector, one view, one wait
questions   the questions of VMs, polled separately while a VM is locked
api         the API's methods that are used           answers     the objects that answers show
taskinfo    from TaskInfo to a task                   faults      its error, with all causes
values      from any XML value to JSON                sdk_types   what the SDK declares of them
unshown     polls of tasks that push doesn't show     inventory   objects of the inventory, their names and paths
session     one session of its own                    soap        envelopes and faults

`answers` and what it imports run in the parsing process too, so this package imports nothing by itself.

HTTP, budget, health, absences and the lifecycle of a tracked task are in `vcenter/`, shared with CIS tasks.
"""
