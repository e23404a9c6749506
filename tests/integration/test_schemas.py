"""The schemas where they meet the real thing: every lab checks what was published in it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.request import urlopen

import msgspec
import pytest

from commands import ran
from lab import lab_in
from task_bridge import schemas
from task_bridge.domain.events import to_cloudevent
from unit.builders import an_event


async def test_a_lab_in_which_a_wrong_event_was_published_fails(tmp_path: Path) -> None:
    wrong = msgspec.json.decode(to_cloudevent(an_event(status="RUNNING", unchanged_since="yesterday")))

    async def publish() -> None:
        async with lab_in(tmp_path) as lab:
            await lab.js.add_stream(name="VCENTER_TASKS_EVENTS", subjects=["events"], allow_direct=True)
            await lab.js.publish("events", json.dumps(wrong).encode(), headers={"Bridge-Instance": "x"})

    with pytest.raises(AssertionError, match="unchanged_since"):
        await publish()


async def test_a_bridge_serves_its_asyncapi_document_with_its_prefix(tmp_path: Path) -> None:
    async with lab_in(tmp_path) as lab, lab.bridge(subject_prefix="acme.tasks") as bridge:
        assert bridge.web.address is not None
        url = f"http://127.0.0.1:{bridge.web.address.port}/asyncapi.json"
        served = await asyncio.to_thread(lambda: urlopen(url, timeout=10).read())
        printed = await ran(
            "schema", "asyncapi", directory=tmp_path, environment={"BRIDGE_SUBJECT_PREFIX": "acme.tasks"}
        )
    assert json.loads(served)["channels"]["watch"]["address"] == "acme.tasks.watch"
    assert served.decode().splitlines() == printed.out


async def test_the_command_prints_each_schema_and_names_them_without_an_argument(tmp_path: Path) -> None:
    named, request, unknown = await asyncio.gather(
        *(ran("schema", *words, directory=tmp_path) for words in ([], ["request"], ["nonsense"]))
    )
    assert (named.code, [line.split()[0] for line in named.out]) == (0, [*schemas.NAMES, "asyncapi", "openapi"])
    assert (request.code, request.out) == (0, schemas.read_text("request").splitlines())
    assert (unknown.code, unknown.out) == (2, [])
