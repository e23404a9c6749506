"""The clock of one process, stepped while it runs, by libfaketime."""

from __future__ import annotations

from pathlib import Path

LIBRARY = next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
MISSING = "libfaketime is missing: apt-get install libfaketime"


class HostClock:
    """The clock of a process of its own. `step` moves it while the process runs; the monotonic clock goes on."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "faketime"
        self.step(0)
        self.environment = {
            "LD_PRELOAD": LIBRARY or "",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: float) -> None:
        """Set the clock so many seconds off the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.0f}\n")
        new.rename(self._file)
