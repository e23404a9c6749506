"""A pytest plug-in with the fixture `task_bridge`, for workflows that wait for vCenter tasks.

    def test_it(task_bridge):
        task = task_bridge.create(scenarios.fails_with_error(after_s=0.2))
        ...  # the code under test requests a watch of the task at task_bridge.nats_url, and acts on its end

Each test gets its own nats-server, simulated vCenter and bridge. They run in a thread of their own, so that tests may
be plain functions or coroutines. pytest finds the plug-in wherever this package is installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pytest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from .lab.local_stack import LocalStack
    from .simulator import Script, TaskDetails

VCENTER = "lab"
FAST_SETTINGS = {"poll_min_s": 0.05, "poll_max_s": 0.5, "progress_interval_s": 0.1, "not_found_grace_s": 1.0}
"""The bridge polls often, so that tests are short. All other settings have their defaults."""


class BridgeFixture:
    """A running bridge and its vCenter, which the bridge knows as `lab`. Canceling tasks is allowed.

    `environment` contains the settings that the commands of `task-bridge` need.
    """

    def __init__(self, portal: BlockingPortal, stack: LocalStack) -> None:
        self.nats_url = stack.nats_url
        self.vcenter_url = stack.vcenter_url
        self.environment = {"BRIDGE_NATS_URL": stack.nats_url}
        self._portal = portal
        self._vcenter = stack.vcenter

    def create(self, script: Script, **details: Unpack[TaskDetails]) -> str:
        """Start a task in vCenter and return its id; the script is a scenario (`task_bridge.simulator.scenarios`) or
        your own. `details`: `id`, `flavour`, `service`, `operation`, `description`, `target`, `user`, `parent`.
        """
        return self._portal.call(partial(self._vcenter.create, script, **details))

    def set(self, task: str, *removes: str, **fields: Any) -> None:
        """Change a task now: `set(task, status="SUCCEEDED", result={"any": "JSON"})`."""
        self._portal.call(partial(self._vcenter.set, task, *removes, **fields))

    def forget(self, task: str) -> None:
        """Make vCenter forget the task, as a restart does; its watch ends as `abandoned.lost` after 5 seconds."""
        self._portal.call(self._vcenter.forget, task)


@pytest.fixture
def task_bridge() -> Iterator[BridgeFixture]:
    """Run a bridge, its NATS and its vCenter for this test alone."""
    # Not at the top: pytest imports this file wherever the package is installed.
    from anyio.from_thread import start_blocking_portal  # noqa: PLC0415

    from .lab.local_stack import run_local_stack  # noqa: PLC0415
    from .vcenter.policy import TIMEOUTS  # noqa: PLC0415

    timeouts = TIMEOUTS._replace(uninterrupted_s=TIMEOUTS.confirm_s)  # a test may have one task alone
    with (
        tempfile.TemporaryDirectory(prefix="task-bridge-test-") as name,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(run_local_stack(Path(name), VCENTER, timeouts, **FAST_SETTINGS)) as stack,
    ):
        yield BridgeFixture(portal, stack)
