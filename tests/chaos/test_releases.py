"""An upgrade from 1.0.0 and back: replicas of both releases on one NATS, one after the other, while clients ask."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.checker import violations
from chaos.clients import Clients
from chaos.rounds import end_replicas, settle_world
from chaos.servers import Servers
from chaos.world import BEGIN_S, LAB, Replica, World, killed, world

ROOT = Path(__file__).parents[2]
RELEASE_1_0 = "86409ed816a928a7d3df546c07b9131299f22cec"
"""The commit of 1.0.0."""
LOAD_S = 45.0
"""How long clients ask: longer than three replicas take to be replaced."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def release_1_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of 1.0.0, installed from its wheel beside the dependencies of today."""
    directory = tmp_path_factory.mktemp("release-1.0")
    source, installed = directory / "source", directory / "installed"
    source.mkdir()
    archive = subprocess.run(
        ["git", "archive", RELEASE_1_0, "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "service"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"the commit of 1.0.0 isn't here: {archive.stderr.decode().strip()[:200]}")
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)  # noqa: S607 - the system's
    programs = Path(sys.executable).parent
    subprocess.run([programs / "hatchling", "build", "-t", "wheel", "-d", directory], cwd=source, check=True)
    (wheel,) = directory.glob("*-1.0.0-*.whl")
    subprocess.run([programs / "pip", "install", "--quiet", "--no-deps", "--target", installed, wheel], check=True)
    return installed


async def replace_all(here: World, package: dict[str, str]) -> None:
    """End each replica as an upgrade does, and start it again with this package."""
    for replica in here.replicas:
        here.book.codes[f"{replica.name} replaced"] = await killed(here, replica, signal.SIGTERM)
        replica.process.environment = {**replica.process.environment, **package}
        await replica.process.start()
        await replica.process.ready(BEGIN_S)


def list_releases(replica: Replica) -> list[str]:
    """Return which release each run of a replica was, by a setting that 1.0.0 hasn't."""
    lines = [line for line in replica.process.log.read_text().splitlines() if '"event": "starting"' in line]
    return ["this" if '"follow_max_rate"' in line else "1.0.0" for line in lines]


def is_of_1_0(rule: str, where: object) -> bool:
    """Whether the checker, which judges by this release, finds what 1.0.0 does otherwise with classic tasks.

    1.0.0 doesn't publish their results whole, and its first event may miss that a VM waits for an answer.
    """
    text = str(where)
    other_result = rule == "ends_as_the_task" and " of task-" in text and "its result is" in text
    return other_result or (rule == "follows_the_task" and text.startswith("task-") and "BLOCKED" in text)


@pytest.mark.parametrize("direction", ["upgrade", "rollback"])
async def test_replicas_are_replaced_one_by_one_while_clients_ask(
    one_server: Servers, tmp_path: Path, release_1_0: Path, direction: str
) -> None:
    of_1_0, of_this = {"PYTHONPATH": str(release_1_0)}, {"PYTHONPATH": ""}
    async with world(tmp_path, one_server, f"release.{direction}") as here:
        await here.begin_with([({LAB}, of_1_0)] * 3)  # so the streams are those of 1.0.0
        if direction == "rollback":
            await replace_all(here, of_this)
        clients = Clients(here, random.Random(7), unknown=False)
        load = asyncio.create_task(clients.run(LOAD_S, 0.1))
        await asyncio.sleep(2)
        await replace_all(here, of_this if direction == "upgrade" else of_1_0)
        assert not load.done(), "clients asked all the time"
        await load
        order = ["1.0.0", "this"] if direction == "upgrade" else ["1.0.0", "this", "1.0.0"]
        assert [list_releases(replica) for replica in here.replicas] == [order] * 3
        wrong = await settle_world(here, clients) + await end_replicas(here)
        account = await here.account()
        wrong += [f"{rule}: {where}" for rule, where in violations(account) if not is_of_1_0(rule, where)]
    assert not wrong, wrong
    assert len(account.asked) > 100
