"""One vCenter as its kinds of tasks share it."""

from __future__ import annotations

from typing import NamedTuple

from .health import Health
from .http import Http
from .login import LoginGate
from .result_queue import Finds


class Link(NamedTuple):
    """HTTP within one budget, one rule for logins, one health, one place for what was found."""

    http: Http
    gate: LoginGate
    health: Health
    finds: Finds
