"""`docs/http.md` by curl, against a bridge in a process of its own that speaks TLS."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from commands import ran
from credentials import suite_authority
from lab import BridgeProcess, Lab
from task_bridge.simulator import scenarios

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
EXAMPLES = re.findall(r"<!-- run -->\n```sh\n(.*?)```", PAGE, re.S)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


async def run_shell(script: str, environment: dict[str, str]) -> list[str]:
    process = await asyncio.create_subprocess_exec("sh", "-euc", script, env=environment, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_the_commands_of_the_page_do_what_it_says(lab: Lab, tmp_path: Path) -> None:
    made = await ran("token", "ci", "--verbs", "watch,get,list,events", "--vcenters", "lab", directory=tmp_path)
    token, line = made.out
    assert made.code == 0
    file = tmp_path / "tokens"
    file.write_text(f"# made by task-bridge token\n{line}\n")
    pair = suite_authority().pair("bridge")
    tls = {"BRIDGE_HTTP_TLS_CERT_FILE": str(pair.certificate), "BRIDGE_HTTP_TLS_KEY_FILE": str(pair.key)}
    process = BridgeProcess(lab.environment(BRIDGE_HTTP_TOKENS_FILE=str(file), **tls), tmp_path)
    await process.start()
    try:
        await process.ready()
        logged = [json.loads(text) for text in process.log.read_text().splitlines()]
        (listening,) = [one for one in logged if one["event"] == "http_listening"]
        assert listening["scheme"] == "https"
        environment = {
            "PATH": lab.environment()["PATH"],
            "BRIDGE": f"https://127.0.0.1:{listening['port']}",
            "CURL_CA_BUNDLE": str(suite_authority().file),
            "TOKEN": token,
        }
        first, waited_for = [lab.vcenter.create(scenarios.succeeds(after_s=1.0)) for _ in range(2)]
        asked = await run_shell(EXAMPLES[0], environment | {"TASK": first})
        waited = await run_shell(EXAMPLES[1], environment | {"TASK": waited_for})
        assert await process.end() == 0
    finally:
        await process.close()
    accepted, state, listed = split_objects("".join(asked))
    assert (accepted["outcome"], state["watching"], listed["total"]) == ("accepted", True, 1)
    assert accepted["watch"]["labels"] == {"workflow": "patch-42"}
    events = [json.loads(event) for event in waited]
    assert [event["data"]["task"] for event in events] == [waited_for] * len(events)
    assert events[-1]["outcome"] == "succeeded"
    log = process.log.read_text()
    assert '"by": "ci"' in log
    assert token not in log
    assert line.split()[1] not in log


def split_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects that stand behind each other: curl prints no line break between answers."""
    decoder, found, position = json.JSONDecoder(), [], 0
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        found.append(value)
    return found


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["c/i", "--verbs", "*"], "letters, digits"),
        (["ci", "--verbs", "wacth"], "wacth"),
        (["ci", "--verbs", "watch", "--vcenters", "la-b"], "name"),
        (["ci"], "--verbs"),
    ],
)
async def test_a_token_that_cannot_be_is_refused(tmp_path: Path, arguments: list[str], told: str) -> None:
    refused = await ran("token", *arguments, directory=tmp_path)
    assert (refused.code, refused.out) == (2, [])
    assert told in "".join(refused.err)
