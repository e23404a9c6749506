"""What else one could look at tasks with, each in a process of its own: `python rivals.py WAY URL FILE SECONDS`.

    floor     httpx lists them all, 500 at a time, with a typed decode, over and over
    program   the same, but every 2 s
    aiohttp   what a user would write: a coroutine a task, which gets it every 2 s
    httpx     the same

FILE holds a session id and the tasks. Prints {"looks", "cpu_s", "seconds"} as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import httpx
import msgspec
import uvloop

EVERY_S = 2.0
SESSION = "vmware-api-session-id"


class Progress(msgspec.Struct):
    completed: int
    total: int


class Info(msgspec.Struct):
    status: str
    cancelable: bool | None = None
    progress: Progress | None = None


class Rival:
    def __init__(self, url: str, session: str, tasks: list[str]) -> None:
        self.url = url
        self.session = session
        self.tasks = tasks
        self.looks = 0

    async def floor(self) -> None:
        await self._list(pause=False)

    async def program(self) -> None:
        await self._list(pause=True)

    async def _list(self, *, pause: bool) -> None:
        decoder = msgspec.json.Decoder(dict[str, Info])
        known: dict[str, Info] = {}
        async with httpx.AsyncClient(base_url=self.url, headers={SESSION: self.session}, trust_env=False) as http:
            while True:
                began = time.monotonic()
                for start in range(0, len(self.tasks), 500):
                    ids = self.tasks[start : start + 500]
                    spec = {"filter_spec": {"tasks": ids}, "result_spec": {"exclude_result": True}}
                    answer = await http.post(
                        "/api/cis/tasks?action=list",
                        content=msgspec.json.encode(spec),
                        headers={"content-type": "application/json"},
                    )
                    known.update(decoder.decode(answer.content))
                    self.looks += len(ids)
                if pause:
                    await asyncio.sleep(max(0.0, began + EVERY_S - time.monotonic()))

    async def aiohttp(self) -> None:
        async with aiohttp.ClientSession(self.url, headers={SESSION: self.session}) as http:

            async def status(task: str) -> str:
                async with http.get(f"/api/cis/tasks/{task}?exclude_result=true") as answer:
                    return str((await answer.json())["status"])

            await self._a_coroutine_each(status)

    async def httpx(self) -> None:
        async with httpx.AsyncClient(
            base_url=self.url, headers={SESSION: self.session}, timeout=60, trust_env=False
        ) as http:

            async def status(task: str) -> str:
                answer = await http.get(f"/api/cis/tasks/{task}?exclude_result=true")
                return str(answer.json()["status"])

            await self._a_coroutine_each(status)

    async def _a_coroutine_each(self, status: Callable[[str], Awaitable[str]]) -> None:
        async def follow(task: str) -> None:
            await asyncio.sleep(random.random() * EVERY_S)
            while await status(task) not in ("SUCCEEDED", "FAILED"):
                self.looks += 1
                await asyncio.sleep(EVERY_S)

        async with asyncio.TaskGroup() as group:
            for task in self.tasks:
                group.create_task(follow(task))


async def main(way: str, url: str, file: str, seconds: float) -> None:
    given = json.loads(Path(file).read_text())  # noqa: ASYNC240 - before anything runs
    rival = Rival(url, given["session"], given["tasks"])
    running = asyncio.create_task(getattr(rival, way)())
    await asyncio.sleep(EVERY_S)  # connections are made, the first looks done
    looks, cpu_s, began = rival.looks, time.process_time(), time.monotonic()
    await asyncio.wait([running], timeout=seconds)
    if running.done():
        running.result()
    used = {"looks": rival.looks - looks, "cpu_s": time.process_time() - cpu_s, "seconds": time.monotonic() - began}
    print(json.dumps(used), flush=True)
    os._exit(0)  # to cancel a thousand requests takes httpx minutes


if __name__ == "__main__":
    _, way, url, file, seconds = sys.argv
    # The best there is for the floor, as the bridge has it; what a user would write runs on what Python brings.
    run = uvloop.run if way in ("floor", "program") else asyncio.run
    run(main(way, url, file, float(seconds)))
