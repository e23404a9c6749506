"""Recipes of docs/recipes.md that need a tool, or that go on without end, run as written against a vcsim."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from go_tools import find_tool
from lab import PASSWORD, USERNAME, until
from vcsim.conftest import VcsimLab, vcsim_lab

pytestmark = pytest.mark.timeout(120)
RECIPES = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
VM = "/DC0/vm/DC0_H0_VM0"


def find_block(language: str, heading: str, number: int = 0) -> str:
    """A block of the section with this heading."""
    section = re.split(r"^## ", RECIPES.partition(f"## {heading}\n")[2], flags=re.M)[0]
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)
    return blocks[number]


async def begin(lab: VcsimLab, *command: str) -> Process:
    here = os.pathsep.join(map(str, (Path(sys.executable).parent, Path(find_tool("govc")).parent)))
    environment = lab.vcsim.govc_environment() | {"BRIDGE_NATS_URL": lab.server.url}
    environment["PATH"] = here + os.pathsep + environment["PATH"]
    return await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


async def end(process: Process) -> tuple[int | None, str]:
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, (out + err).decode()


async def test_tasks_that_govc_lists_are_watched(tmp_path: Path) -> None:
    async with vcsim_lab(tmp_path, "http", "-task-delay", "8000") as lab, lab.bridge():
        powering = asyncio.create_task(lab.vcsim.govc("vm.power", "-off", VM))
        code, said = 1, ""
        while "completed.succeeded" not in said:  # until the task runs there is none to watch
            assert not powering.done(), said
            code, said = await end(await begin(lab, "bash", "-c", find_block("sh", "govc")))  # type: ignore[assignment]
        assert code == 0, said
        assert (await powering)[0] == 0


async def test_clones_are_followed_whoever_starts_them(tmp_path: Path) -> None:
    async with vcsim_lab(tmp_path) as lab, lab.bridge() as bridge:
        following = await begin(lab, "bash", "-ec", find_block("sh", "govc", 1).replace("\n", "\nexec ", 1))
        try:
            await until(lambda: [one.state for one in bridge.status.health().follows] == ["following"])
            clone = ("vm.clone", "-vm", VM, "-pool", "/DC0/host/DC0_H0/Resources", "-on=false", "cloned")
            assert (await lab.vcsim.govc(*clone))[0] == 0
            assert following.stdout is not None
            async with asyncio.timeout(30):
                while b"completed.succeeded" not in await following.stdout.readline():
                    pass
        finally:
            following.terminate()
            await end(following)


async def test_a_follow_of_terraforms_user_is_accepted(tmp_path: Path) -> None:
    async with vcsim_lab(tmp_path) as lab, lab.bridge():
        code, said = await end(await begin(lab, "bash", "-c", find_block("sh", "Terraform").partition("\n")[0]))
        assert code == 0, said
        (follow,) = (await lab.ask("follows"))["follows"]
        assert (follow["name"], follow["follow"]["users"]) == ("terraform", ["VSPHERE.LOCAL\\terraform"])


async def test_a_task_of_pyvmomi_is_watched_to_its_end(tmp_path: Path) -> None:
    async with vcsim_lab(tmp_path) as lab, lab.bridge():
        assert (await lab.vcsim.govc("vm.power", "-off", VM))[0] == 0
        address = lab.vcsim.url.removeprefix("http://").split(":")
        connecting = f"""
import atexit
from pyVim.connect import Disconnect, SmartConnect
service = SmartConnect(protocol="http", host={address[0]!r}, port={address[1]}, user={USERNAME!r}, pwd={PASSWORD!r})
atexit.register(Disconnect, service)
vm = service.content.searchIndex.FindByInventoryPath({VM!r})
"""
        code, said = await end(await begin(lab, sys.executable, "-c", connecting + find_block("python", "pyVmomi")))
        assert code == 0, said
        assert "completed.succeeded" in said
