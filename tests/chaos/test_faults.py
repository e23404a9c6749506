"""Each fault alone, in a short round: the seeded rounds mix them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.rounds import Setup, Verdict, played
from chaos.servers import NO_DISK, NO_OLDEST, OLDEST, OLDEST_VERSION, Servers
from chaos.world import ANNEX, LAB
from host_clock import LIBRARY, MISSING
from task_bridge.jetstream.provision import MIN_SERVER_VERSION

SEED, CHAOS_S = 7, 3.0
QUICK = {"BRIDGE_VCENTERS__LAB__TIMEOUT": "3s"}
TWO_BRIDGES = Setup([({LAB}, QUICK)] * 2)
FAULTS = [
    "silence_link",
    "delay_link",
    "silence_vcenter",
    "delay_vcenter",
    "purge_events",
    "cap_events",
    "delete_events",
    "purge_queue",
    "cap_queue",
    "delete_queue",
    "delete_consumer",
]

pytestmark = pytest.mark.timeout(180)


def check_verdict(verdict: Verdict) -> None:
    assert verdict.wrong == [], "\n".join([str(verdict), *verdict.told, *verdict.wrong])
    assert verdict.unknown == 0, verdict.told
    assert verdict.events > 10


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_alone_breaks_no_promise(one_server: Servers, tmp_path: Path, fault: str) -> None:
    check_verdict(await played(one_server, tmp_path, SEED, CHAOS_S, setup=TWO_BRIDGES, only=fault))


@pytest.mark.skipif(LIBRARY is None, reason=MISSING)
async def test_hosts_with_wrong_clocks_break_no_promise(one_server: Servers, tmp_path: Path) -> None:
    setup = TWO_BRIDGES._replace(clocks_s=[-3_600.0, 3_600.0])
    check_verdict(await played(one_server, tmp_path, SEED, CHAOS_S, setup=setup, only="step_clock"))


async def test_replicas_with_different_settings_break_no_promise(one_server: Servers, tmp_path: Path) -> None:
    odd = QUICK | {"BRIDGE_CAPACITY": "10", "BRIDGE_ACK_WAIT": "3s", "BRIDGE_VCENTERS__LAB__TIMEOUT": "1s"}
    setup = Setup([({LAB, ANNEX}, QUICK), ({LAB}, odd)])
    check_verdict(await played(one_server, tmp_path, SEED, CHAOS_S, setup=setup, only="term_bridge"))


@pytest.mark.skipif(OLDEST is None, reason=NO_OLDEST)
async def test_a_cluster_is_upgraded_under_way(tmp_path: Path) -> None:
    assert ".".join(map(str, MIN_SERVER_VERSION)) == OLDEST_VERSION
    servers = Servers(tmp_path / "nats", 3)
    try:
        setup = TWO_BRIDGES._replace(outdated=True)
        check_verdict(await played(servers, tmp_path, SEED, 6.0, setup=setup, only="upgrade_nats"))
    finally:
        servers.close()


async def test_a_full_disk_breaks_no_promise(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "nats", 1, own_disks=True)
    try:
        if not servers.disks:
            pytest.skip(NO_DISK)
        servers.start()
        check_verdict(await played(servers, tmp_path, SEED, CHAOS_S, setup=TWO_BRIDGES, only="fill_a_disk"))
    finally:
        servers.close()
