"""One lab a test: nothing of one test is seen by another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser

from browser import launched_browser
from lab import BridgeProcess, Lab, lab_in


@pytest.fixture
def scheme() -> str:
    """How the vCenter of `lab` is served; a module that tries its faults has this fixture too."""
    return "http"


@pytest.fixture
async def lab(tmp_path: Path, scheme: str) -> AsyncIterator[Lab]:
    async with lab_in(tmp_path, scheme=scheme) as lab:
        yield lab


@pytest.fixture
async def process(lab: Lab, tmp_path: Path) -> AsyncIterator[BridgeProcess]:
    """A bridge to be started, killed and started again; ended at the latest with the test."""
    bridge = BridgeProcess(lab.environment(), tmp_path)
    bridge.log.touch()
    yield bridge
    await bridge.close()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with launched_browser() as browser:
        yield browser
