"""A pytest plug-in for workflows that wait for vCenter tasks: the fixture `task_bridge`.

    def test_it(task_bridge):
        task = task_bridge.create(scenarios.fails_with_error(after_s=0.2))
        ...  # what is tested asks at task_bridge.nats_url for a watch of it, and does what it does at the end

Each test has a nats-server, a simulated vCenter and a bridge of its own. They run in a thread of their own, so that
tests may be plain functions or coroutines. pytest finds the plug-in where this package is installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from .lab.local_stack import LocalStack
    from .simulator import Script

VCENTER = "lab"
QUICK = {"poll_min_s": 0.05, "poll_max_s": 0.5, "progress_interval_s": 0.1, "not_found_grace_s": 1.0}
"""The bridge looks often: nobody wants to wait for a test. All else is as it is by default."""


class BridgeFixture:
    """What the fixture gives. The bridge knows its vCenter as `lab`; canceling tasks is allowed."""

    def __init__(self, portal: BlockingPortal, stage: LocalStack) -> None:
        self.nats_url = stage.nats_url
        self.vcenter_url = stage.vcenter_url
        self.environment = {"BRIDGE_NATS_URL": stage.nats_url}
        """What the commands of `task-bridge` need to know."""
        self._portal = portal
        self._vcenter = stage.vcenter

    def create(self, script: Script, **about: Any) -> str:
        """Starts a task of a fate (`task_bridge.simulator.fates`) or a script in vCenter; its id.

        `about`: `id`, `flavour`, `service`, `operation`, `description`, `target`, `user`, `parent`.
        """
        return self._portal.call(partial(self._vcenter.create, script, **about))

    def set(self, task: str, *removes: str, **fields: Any) -> None:
        """Changes a task now: `set(task, status="SUCCEEDED", result={"any": "JSON"})`."""
        self._portal.call(partial(self._vcenter.set, task, *removes, **fields))

    def forget(self, task: str) -> None:
        """vCenter doesn't know the task any more, as after a restart; its watch ends as `abandoned.lost`."""
        self._portal.call(self._vcenter.forget, task)


@pytest.fixture
def task_bridge() -> Iterator[BridgeFixture]:
    """A bridge, its NATS and its vCenter, for this test alone."""
    # Not above: pytest imports this file wherever the package is installed.
    from anyio.from_thread import start_blocking_portal  # noqa: PLC0415

    from .lab.local_stack import run_local_stack  # noqa: PLC0415

    with (
        tempfile.TemporaryDirectory(prefix="task-bridge-test-") as name,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(run_local_stack(Path(name), VCENTER, **QUICK)) as stage,
    ):
        yield BridgeFixture(portal, stage)
