"""One vCenter as its kinds of tasks share it."""

from __future__ import annotations

from typing import NamedTuple

from .finds import Finds
from .gate import LoginGate
from .health import Health
from .http import Http


class Link(NamedTuple):
    """HTTP within one budget, one rule for logins, one health, one place for what was found."""

    http: Http
    gate: LoginGate
    health: Health
    finds: Finds
