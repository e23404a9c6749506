"""A simulated vCenter for tests, demonstrations and workflows under development.

from task_bridge.simulator import SimulatedVCenter, fates, faults
from task_bridge.simulator.serve import serving
"""

from . import faults
from . import scenarios as fates
from .app import SimulatedVCenter
from .bodies import Target
from .clock import ManualClock
from .options import Options, Timestamps
from .tasks import Script, Step, message, progress, std_error

__all__ = [
    "ManualClock",
    "Options",
    "Script",
    "SimulatedVCenter",
    "Step",
    "Target",
    "Timestamps",
    "fates",
    "faults",
    "message",
    "progress",
    "std_error",
]
