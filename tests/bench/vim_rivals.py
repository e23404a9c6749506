"""What else one could wait for classic tasks with, each in a process of its own: `vim_rivals.py WAY URL FILE`.

    threads   pyVmomi's own WaitForTask in a thread a task, each with a property collector of its own
    pull      pyVmomi asks how all stand, 500 a call, every 2 s

FILE holds the tasks. Ends with the last of them and prints {"noticed_s": [...], "cpu_s"} as JSON:
how long after vCenter's time of its end each was noticed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyVim.connect
import pyVim.task
import pyVmomi

from lab import PASSWORD, USERNAME

EVERY_S = 2.0
PULL_MAX = 500
STACK_BYTES = 256 * 1024
# Its types aren't fit for mypy's strict mode.
vim: Any = pyVmomi.vim
vmodl: Any = pyVmomi.vmodl
connect: Any = pyVim.connect
WaitForTask: Any = pyVim.task.WaitForTask


class Noticed:
    """When each end was noticed, by this machine's clock, which is vCenter's too."""

    def __init__(self) -> None:
        self.after_s: list[float] = []

    def end(self, completed: Any, at: float) -> None:
        self.after_s.append(at - completed.timestamp())


def threads(instance: Any, tasks: list[Any], noticed: Noticed) -> None:
    def wait(task: Any) -> None:
        WaitForTask(task, si=instance, pc=instance.content.propertyCollector.CreatePropertyCollector())
        at = time.time()
        noticed.end(task.info.completeTime, at)

    threading.stack_size(STACK_BYTES)
    waiting = [threading.Thread(target=wait, args=(task,)) for task in tasks]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()


def pull(instance: Any, tasks: list[Any], noticed: Noticed) -> None:
    left = {task._moId: task for task in tasks}
    while left:
        began = time.monotonic()
        those = list(left.values())
        for first in range(0, len(those), PULL_MAX):
            for task, state, completed in _looked(instance, those[first : first + PULL_MAX]):
                if state == "success":
                    noticed.end(completed, time.time())
                    del left[task._moId]
        time.sleep(max(0.0, began + EVERY_S - time.monotonic()))


def _looked(instance: Any, tasks: list[Any]) -> list[tuple[Any, str, Any]]:
    query = vmodl.query.PropertyCollector
    wanted = query.PropertySpec(type=vim.Task, pathSet=["info.state", "info.progress", "info.completeTime"])
    spec = query.FilterSpec(objectSet=[query.ObjectSpec(obj=task) for task in tasks], propSet=[wanted])
    answer = instance.content.propertyCollector.RetrievePropertiesEx([spec], query.RetrieveOptions())
    told = [(one.obj, {prop.name: prop.val for prop in one.propSet}) for one in answer.objects]
    return [(task, info["info.state"], info.get("info.completeTime")) for task, info in told]


def main(way: str, url: str, file: str) -> None:
    address = urlsplit(url)
    where = {"host": address.hostname, "port": address.port, "protocol": "http"}
    tasks = json.loads(Path(file).read_text())
    instance = connect.SmartConnect(**where, user=USERNAME, pwd=PASSWORD, connectionPoolTimeout=-1)
    noticed, cpu_s = Noticed(), time.process_time()
    {"threads": threads, "pull": pull}[way](instance, [vim.Task(one, instance._stub) for one in tasks], noticed)
    print(json.dumps({"noticed_s": noticed.after_s, "cpu_s": time.process_time() - cpu_s}), flush=True)
    connect.Disconnect(instance)


if __name__ == "__main__":
    main(*sys.argv[1:])
