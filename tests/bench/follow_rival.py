"""What else finds tasks that others start: pyVmomi reads a TaskHistoryCollector each second. `follow_rival.py URL`.

Prints a line when it listens. Ends at a line on its input and prints {"after_s": {task: s}, "cpu_s"} as JSON: how long
after vCenter's queue time each task was seen first.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pyVim.connect
import pyVmomi

from lab import PASSWORD, USERNAME

EVERY_S = 1.0
PAGE = 500
# Its types aren't fit for mypy's strict mode.
vim: Any = pyVmomi.vim
connect: Any = pyVim.connect


def read_history(instance: Any, seen: dict[str, float], is_over: threading.Event) -> None:
    collector = instance.content.taskManager.CreateCollectorForTasks(vim.TaskFilterSpec())
    print(flush=True)
    while not is_over.wait(EVERY_S):
        while page := collector.ReadNextTasks(PAGE):
            at = time.time()
            for info in page:
                seen.setdefault(info.key, at - info.queueTime.timestamp())


def main(url: str) -> None:
    address = urlsplit(url)
    where = {"host": address.hostname, "port": address.port, "protocol": "http"}
    instance = connect.SmartConnect(**where, user=USERNAME, pwd=PASSWORD, connectionPoolTimeout=-1)
    seen: dict[str, float] = {}
    is_over, cpu_s = threading.Event(), time.process_time()
    reader = threading.Thread(target=read_history, args=(instance, seen, is_over))
    reader.start()
    sys.stdin.readline()
    is_over.set()
    reader.join()
    print(json.dumps({"after_s": seen, "cpu_s": time.process_time() - cpu_s}), flush=True)
    connect.Disconnect(instance)


if __name__ == "__main__":
    main(*sys.argv[1:])
