"""One vCenter as its kinds of tasks share it."""

from __future__ import annotations

from typing import NamedTuple

from .health import VCenterHealthTracker
from .http import VCenterHttp
from .login import LoginThrottle
from .result_queue import ResultQueue


class SharedVCenter(NamedTuple):
    """HTTP within one budget, one rule for logins, one health, one place for what was found."""

    http: VCenterHttp
    login_throttle: LoginThrottle
    health: VCenterHealthTracker
    finds: ResultQueue
