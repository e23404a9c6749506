"""For all tests: how long one input of a property takes says nothing on a shared machine, and no folder is left.

A shell ignores Ctrl-C for what it starts in the background. All programs that the suite starts would ignore it too.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

import credentials

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def suite_directory() -> Iterator[None]:
    """The workers of pytest-xdist end without what Python does at its end."""
    yield
    credentials.suite_directory.cleanup()
