"""A short run of the chaos suite: `make chaos` plays as many rounds as wanted, on one server or on three."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.rounds import Setup, played
from chaos.servers import Servers
from chaos.world import LAB

SEED = 20


@pytest.mark.timeout(150)
async def test_a_round_of_chaos_breaks_no_promise(servers: Servers, tmp_path: Path) -> None:
    verdict = await played(servers, tmp_path, SEED + servers.replicas, chaos_s=4.0)
    assert verdict.wrong == [], "\n".join([str(verdict), *verdict.told, *verdict.wrong])
    assert verdict.events > 20


# The client of the test, nats-py, may leave a connection open whose server was killed (2.16, measured).
@pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(200)
async def test_a_round_of_chaos_hides_no_task_from_a_follow(servers: Servers, tmp_path: Path) -> None:
    setup = Setup([({LAB}, {"BRIDGE_VCENTERS__LAB__TIMEOUT": "3s"})] * 2, followed=True)
    verdict = await played(servers, tmp_path, SEED + servers.replicas, chaos_s=4.0, setup=setup)
    assert verdict.wrong == [], "\n".join([str(verdict), *verdict.told, *verdict.wrong])
    assert verdict.watches > 20
