"""Classic vim tasks (`task-123`) of a vCenter, over SOAP at `/sdk`: `VimSource` is the port `TaskSource` for them.

source     the port, and when what is asked     looks     what follows from an answer
push       one collector, one view, one wait     methods   the API's methods that are used
session    one session of its own                soap      envelopes, faults
reading    from TaskInfo to a task               followed  where each task is between two looks

HTTP, budget, health and proof of absence are those of `link/`, shared with the CIS tasks of the same vCenter.
"""

from .source import VimSource

__all__ = ["VimSource"]
