"""A simulated vCenter for tests, demonstrations and workflows under development.

from task_bridge.simulator import SimulatedVCenter, faults, scenarios
from task_bridge.simulator.serve import serve_vcenter
"""

from . import faults, scenarios
from .app import SimulatedVCenter
from .options import ManualClock, Options, Timestamps
from .script import Script, Step, message, progress, std_error
from .task_attributes import SimulatedTarget, TaskDetails

__all__ = [
    "ManualClock",
    "Options",
    "Script",
    "SimulatedTarget",
    "SimulatedVCenter",
    "Step",
    "TaskDetails",
    "Timestamps",
    "faults",
    "message",
    "progress",
    "scenarios",
    "std_error",
]
