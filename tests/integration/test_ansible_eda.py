"""The rulebook of examples/workflows, run by ansible-rulebook: a task fails in vCenter, and a playbook runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from lab import Lab, free_ports, until
from task_bridge.settings import load
from task_bridge.simulator import scenarios

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/workflows/ansible-eda"
BUILT = ROOT / ".venv-eda/bin"
TOKEN = "made-up-token"
pytestmark = pytest.mark.timeout(180)  # Java and ansible-core take their time to start


def find_rulebook() -> Path:
    """Return the path of ansible-rulebook. Skips where it or Java is missing; CI, which makes it, fails."""
    if shutil.which("java") is None:
        pytest.skip("there is no Java here, which ansible-rulebook needs")
    found = shutil.which("ansible-rulebook", path=BUILT) or shutil.which("ansible-rulebook")
    if found is None:
        assert not os.environ.get("CI"), "ansible-rulebook is missing: run make eda"
        pytest.skip("there is no ansible-rulebook here: run make eda, which needs Java 17")
    return Path(found)


class Rulebook:
    """ansible-rulebook with the example, and all that it printed."""

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}/vcenter"
        self._log = log

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    async def listens(self, process: asyncio.subprocess.Process) -> None:
        """Waits until the webhook refuses a request without the token."""
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(90):
            while True:
                assert process.returncode is None, self.printed
                try:
                    answer = await client.post(self.url, json={})
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                else:
                    assert answer.status_code == 401
                    return


@asynccontextmanager
async def run_rulebook(directory: Path) -> AsyncIterator[Rulebook]:
    program = find_rulebook()
    (port,) = free_ports(1)
    rulebook = Rulebook(port, directory / "rulebook.log")
    environment = os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",  # it starts ansible-playbook
        "EDA_TOKEN": TOKEN,
        "EDA_PORT": str(port),
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_HOME": str(directory / "ansible"),
    }
    words = ["--rulebook", "rulebook.yml", "--inventory", "inventory.yml", "--env-vars", "EDA_TOKEN,EDA_PORT"]
    with (directory / "rulebook.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, *words, cwd=EXAMPLE, env=environment, stdout=log, stderr=log
        )
    try:
        await rulebook.listens(process)
        yield rulebook
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def test_a_failed_task_runs_the_playbook_and_a_good_one_does_not(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    async with run_rulebook(tmp_path) as rulebook:
        text = (EXAMPLE / "delivery.env").read_text()
        text = text.replace("http://eda.example.com:5000/vcenter", rulebook.url)
        (tmp_path / "delivery.env").write_text(text.replace("/run/secrets/eda-token", str(tmp_path / "token")))
        read = load({}, env_file=tmp_path / "delivery.env", need_vcenters=False, need_deliveries=True)
        async with lab.bridge(deliveries=read.deliveries):
            await lab.listen()
            good = lab.vcenter.create(scenarios.succeeds(after_s=0.3))
            await lab.publish({"task": good})
            await lab.ended(good)
            bad = lab.vcenter.create(scenarios.fails_with_error(after_s=0.3))
            await lab.publish({"task": bad})
            event = await lab.ended(bad)
            ended = time.monotonic()
            await until(lambda: f"{bad} of lab failed (event {event['id']})" in rulebook.printed, 60)
            took_s = time.monotonic() - ended
    assert good not in rulebook.printed
    print(f"the playbook ran {took_s:.2f} s after the final event")  # noqa: T201 - pytest -s shows it
