"""A simulated vCenter for tests, demonstrations and workflows under development.

from task_bridge.simulator import SimulatedVCenter, faults, scenarios
from task_bridge.simulator.serve import serving
"""

from . import faults, scenarios
from .app import SimulatedVCenter
from .bodies import SimulatedTarget
from .clock import ManualClock
from .options import Options, Timestamps
from .script import Script, Step, message, progress, std_error

__all__ = [
    "ManualClock",
    "Options",
    "Script",
    "SimulatedTarget",
    "SimulatedVCenter",
    "Step",
    "Timestamps",
    "faults",
    "message",
    "progress",
    "scenarios",
    "std_error",
]
