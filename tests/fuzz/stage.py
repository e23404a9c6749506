"""NATS, a simulated vCenter and a bridge in a process of its own, to be attacked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fuzz import raw_http
from fuzz.run import Attack
from lab import BridgeProcess, lab_in
from task_bridge.domain.access import hash_token

_QUICK = {
    "BRIDGE_NOT_FOUND_GRACE": "200ms",
    "BRIDGE_VCENTERS__LAB__MAX_REQUESTS_PER_SECOND": "1000",
    "BRIDGE_LOG_FORMAT": "json",
}


@asynccontextmanager
async def attacked(directory: Path, seed: int) -> AsyncIterator[Attack]:
    """The bridge lives on, and ends as it is told to, whatever it was sent."""
    async with lab_in(directory) as lab:
        tokens = directory / "tokens"
        tokens.write_text(f"fuzz {hash_token(raw_http.TOKEN.encode())} *\nno line\n")
        bridge = BridgeProcess(lab.environment(**_QUICK, BRIDGE_HTTP_TOKENS_FILE=str(tokens)), directory)
        await bridge.start()
        try:
            await bridge.ready(60)
            listening = next(line for line in bridge.log.read_text().splitlines() if '"http_listening"' in line)
            yield Attack(lab, bridge, f"http://127.0.0.1:{json.loads(listening)['port']}", seed)
            assert await bridge.end(within_s=20) == 0
        finally:
            await bridge.close()
