"""For all tests: how long one input of a property takes says nothing on a shared machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
