"""One replica of 200 vCenters, each simulated at an address of its own, without watches and with some on each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from bench.stage import Row, Stage, stage, vcenters
from lab import PASSWORD, USERNAME

COUNT = 200
OTHERS = COUNT - 1  # one is the stage's own, `lab`
CIS, CLASSIC, ENDING = 5, 5, 2
SETTLE_S = 30.0
WINDOW_S = 60.0  # a vCenter without watches is checked once a minute


async def measure() -> AsyncIterator[Row]:
    async with vcenters(OTHERS) as urls:
        addresses = {f"v{number:03}": url for number, url in enumerate(urls)}
        async with stage(**_environment(addresses)) as it:
            began = time.monotonic()
            await it.has("vcenter_logins_total", COUNT)
            last_s = it.ready_s + time.monotonic() - began
            words = f"{it.ready_s:.1f} s, the last login by {last_s:.1f} s; CPU {it.cpu_s():.1f} s"
            yield Row(f"{COUNT} vCenters: from the start to ready", words)
            await asyncio.sleep(10.0)
            yield await _used(it, "   without watches")
            await _watch_some(it, addresses | {"lab": it.url})
            await asyncio.sleep(SETTLE_S)
            watches = COUNT * (CIS + CLASSIC)
            yield await _used(it, f"   {watches:,} watches, {CIS} CIS and {CLASSIC} classic tasks each")
            before_s, answer = it.cpu_s(), await it.scrape()
            series = sum(not line.startswith("#") for line in answer.text.splitlines())
            words = (
                f"{answer.num_bytes_downloaded / 1e6:.2f} MB ({len(answer.content) / 1e6:.1f} MB before compression)"
            )
            measured = f"{words}, {series:,} series, CPU {1000 * (it.cpu_s() - before_s):.0f} ms"
            yield Row("   a scrape of /metrics", measured, "≤ 0.3 MB")
            yield Row("   event loop late by at most", f"{1000 * await it.lag_s():.0f} ms")


async def _used(it: Stage, what: str) -> Row:
    used = await it.used_in(WINDOW_S)
    rate = used.requests / used.seconds
    return Row(what, f"{used.core_percent:.0f} % of a core; {rate:.1f} requests a second; {it.rss_mb():.0f} MB")


async def _watch_some(it: Stage, addresses: dict[str, str]) -> None:
    """Watch tasks of every vCenter: some that go on, and some that end at once."""
    for name, url in addresses.items():
        for about in (
            {"count": CIS, "fate": "runs_forever"},
            {"count": CLASSIC, "fate": "stays_pending", "flavour": "vim"},
            {"count": ENDING, "fate": "succeeds"},
            {"count": ENDING, "fate": "succeeds", "flavour": "vim"},
        ):
            answer = await it.http.post(f"{url}/simulator/tasks", json=about)
            answer.raise_for_status()
            await it.watch({"task": task, "vcenter": name} for task in answer.json()["tasks"])
    await it.has("watching", len(addresses) * (CIS + CLASSIC + 2 * ENDING))
    await it.has("detection_seconds_count", len(addresses) * 2 * ENDING)


def _environment(addresses: dict[str, str]) -> dict[str, str]:
    environment: dict[str, str] = {}
    for name, url in addresses.items():
        prefix = f"BRIDGE_VCENTERS__{name.upper()}__"
        environment |= {f"{prefix}URL": url, f"{prefix}USERNAME": USERNAME, f"{prefix}PASSWORD": PASSWORD}
    return environment
