"""`make check-image`: the Dockerfile's commands in a clean folder, then its process as an unprivileged user there.

The tree is read-only, as the image's root is meant to be run. A simulated vCenter out of the same image, a real
nats-server beside it, one task watched to its end, the health check, and SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from deployment.dockerfile import Image
from lab import NatsServer
from task_bridge.client import TaskBridge

PASSWORD = "a-made-up-secret"
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def unprivileged(image: Image) -> dict[str, Any]:
    """How its processes are started: as its user where we may, else as ourselves, who aren't root either."""
    if os.geteuid() != 0:
        return {"cwd": image.workdir}
    return {"cwd": image.workdir, "user": image.user, "group": image.group, "extra_groups": []}


@contextmanager
def started(image: Image, log: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [*image.entrypoint, *(arguments or image.command)]
    environment = image.environment | settings
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, **unprivileged(image))
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def healthy(image: Image) -> bool:
    health = subprocess.run(image.health, env=image.environment, stderr=subprocess.DEVNULL, **unprivileged(image))
    return health.returncode == 0


def ready(image: Image) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{image.port}/readyz", timeout=5):
            return True
    except OSError:  # a 503 is one
        return False


def until(fact: Callable[[], T | None], within_s: float = 60.0) -> T:
    deadline = time.monotonic() + within_s
    while not (found := fact()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {fact}"
        time.sleep(0.1)
    return found


def new_task(simulator: str) -> str | None:
    """The id of a task that takes a second; None when nobody listens yet."""
    body = json.dumps({"fate": "succeeds", "with": {"after_s": 1}}).encode()
    try:
        with urllib.request.urlopen(f"{simulator}/simulator/tasks", body, timeout=10) as answer:  # noqa: S310 - http
            return str(json.load(answer)["tasks"][0])
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            return None
        raise


async def watched(nats_url: str, task: str) -> str:
    async with TaskBridge(nats_url) as bridge:
        return (await bridge.wait(task, timeout=30)).kind


def checked(image: Image, directory: Path) -> None:
    """Runs it beside NATS and a vCenter. Raises AssertionError."""
    files = sorted(image.tree.rglob("*"))
    nats, port = NatsServer(directory), free_port()
    nats.start()
    simulator = f"http://127.0.0.1:{port}"
    settings = {
        "BRIDGE_NATS_URL": nats.url,
        "BRIDGE_VCENTERS__LAB__URL": simulator,
        "BRIDGE_VCENTERS__LAB__USERNAME": "administrator@vsphere.local",
        "BRIDGE_VCENTERS__LAB__PASSWORD_FILE": str(directory / "vcenter-password"),
    }
    (directory / "vcenter-password").write_text(PASSWORD)
    where = ("--host", "127.0.0.1", "--port", str(port), "--password", PASSWORD)
    try:
        with (
            started(image, directory / "simulator.log", "simulate", *where),
            started(image, directory / "bridge.log", **settings) as bridge,
        ):
            until(lambda: healthy(image))
            until(lambda: ready(image))
            task = until(lambda: new_task(simulator))  # the bridge is ready without a vCenter
            assert asyncio.run(watched(nats.url, task)) == "completed.succeeded"
            bridge.send_signal(signal.SIGTERM)
            assert bridge.wait(10) == 0
            assert not healthy(image)
    finally:
        nats.stop()
    assert sorted(image.tree.rglob("*")) == files, "something was written into the image"
    assert PASSWORD not in (directory / "bridge.log").read_text()


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="task-bridge-image-"))
    try:
        directory.chmod(0o755)  # for the image's user
        image = Image(directory, free_port())
        image.build()
        size = sum(path.lstat().st_size for path in image.tree.rglob("*"))
        run = directory / "run"
        run.mkdir(mode=0o755)
        checked(image, run)
        print(f"The image's own layer is {size / 1e6:.0f} MB; its process did its work in it.")
    finally:
        subprocess.run(["chmod", "-R", "u+w", directory], check=False)  # noqa: S607 - the system's
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
