"""Scenarios: ready-made scripts of tasks, such as `vcenter.create(scenarios.succeeds(after_s=0.3))`.

Each scenario is a function that returns a `Script`; scripts of your own work in the same way. Seconds count from the
task's creation. Most tasks are PENDING for the first tenth of `after_s`, then RUNNING with progress, and end after
`after_s`. `SCENARIOS` contains all of them by name, for the control API.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .script import Fields, Script, Step, message, progress, std_error

DONE = {"status": "SUCCEEDED", "progress": progress(100)}
GOOD_RESULT: Fields = {"status": "OK", "hosts": {"host-17": {"status": "OK"}, "host-18": {"status": "OK"}}}
BAD_RESULT: Fields = {
    "status": "FAILED",
    "hosts": {"host-17": {"status": "OK"}, "host-18": {"status": "FAILED"}},
    "notifications": {
        "info": [],
        "warnings": [],
        "errors": [
            {
                "id": "simulator.host.unreachable",
                "type": "ERROR",
                "message": message(
                    "Host 'esx2' did not answer.", "esx2", id="simulator.host.unreachable", host={"s": "esx2"}
                ),
            }
        ],
    },
}
ERROR = std_error(
    "INTERNAL_SERVER_ERROR",
    message("The change could not be applied.", id="simulator.apply.failed"),
    message("Host 'esx2' did not answer.", "esx2", id="simulator.host.unreachable", host={"s": "esx2"}),
)
CANCELED: Fields = {
    "status": "FAILED",
    "error": std_error("CANCELED", message("The task was canceled.", id="simulator.task.canceled")),
}
INTERRUPTED: Fields = {
    "status": "FAILED",
    "error": std_error("CANCELED", message("The service was restarted.", id="simulator.task.serviceRestart")),
}


# Successes


def succeeds(after_s: float = 10.0, looks: int = 5, result: Any = GOOD_RESULT) -> Script:
    """PENDING, then RUNNING with `looks` steps of progress, then SUCCEEDED."""
    return Script((*_running_steps(after_s, looks), Step(after_s, {**DONE, "result": result})))


def succeeds_at_once(result: Any = GOOD_RESULT) -> Script:
    """SUCCEEDED before the first poll."""
    return Script((Step(0.0, {**DONE, "result": result}),))


def succeeds_without_result(after_s: float = 10.0) -> Script:
    return Script((*_running_steps(after_s), Step(after_s, DONE)))


def succeeds_with_failed_result(after_s: float = 10.0) -> Script:
    """SUCCEEDED by its status, while its result says that the work failed."""
    return succeeds(after_s, result=BAD_RESULT)


def blocked_then_succeeds(blocked_s: float = 4.0, after_s: float = 10.0) -> Script:
    """RUNNING, BLOCKED for a while in the middle, RUNNING again, SUCCEEDED."""
    blocked_at_s = (after_s - blocked_s) / 2
    return Script(
        (
            Step(0.0, {"status": "RUNNING", "progress": progress(0)}),
            Step(blocked_at_s, {"status": "BLOCKED", "progress": progress(40)}),
            Step(blocked_at_s + blocked_s, {"status": "RUNNING"}),
            Step(after_s, {**DONE, "result": GOOD_RESULT}),
        )
    )


def partial_results(after_s: float = 10.0, hosts: int = 4) -> Script:
    """RUNNING with a result that grows by one host per step."""
    pace_s = after_s / (hosts + 1)
    done = [{f"host-{n}": {"status": "OK"} for n in range(count)} for count in range(hosts + 1)]
    steps = [
        Step(n * pace_s, {"status": "RUNNING", "progress": progress(n, hosts), "result": {"hosts": done[n]}})
        for n in range(hosts + 1)
    ]
    return Script((*steps, Step(after_s, {"status": "SUCCEEDED", "result": {"status": "OK", "hosts": done[hosts]}})))


def changing_subtasks(after_s: float = 10.0, hosts: int = 4) -> Script:
    """RUNNING at one progress, while subtasks end one by one: only requests with `return_all` see the change."""
    pace_s = after_s / (hosts + 1)
    shown = [
        {"status": "RUNNING", "progress": progress(10), "subtasks": _build_subtasks(n, hosts)} for n in range(hosts + 1)
    ]
    steps = [Step(n * pace_s, fields) for n, fields in enumerate(shown)]
    return Script((*steps, Step(after_s, {"status": "SUCCEEDED", "result": GOOD_RESULT})))


def large_result(size: int = 8_000_000, after_s: float = 1.0) -> Script:
    """SUCCEEDED with a result of at least `size` bytes."""
    return succeeds(after_s, result={"status": "OK", "log": _build_text(size)})


def bare_success(after_s: float = 0.0) -> Script:
    """A body of exactly `{"status": "SUCCEEDED"}`, and `{"status": "PENDING"}` before."""
    return Script((Step(after_s, {"status": "SUCCEEDED"}),), "minimal")


# Failures


def fails_with_error(after_s: float = 10.0, error: Fields = ERROR) -> Script:
    """FAILED with the reason in `error`."""
    return _failing_script(after_s, {"error": error})


def fails_by_result(after_s: float = 10.0) -> Script:
    """FAILED without `error`; the reason is in `result`."""
    return _failing_script(after_s, {"result": BAD_RESULT})


def fails_with_error_and_result(after_s: float = 10.0) -> Script:
    return _failing_script(after_s, {"error": ERROR, "result": BAD_RESULT})


def fails_silently(after_s: float = 10.0) -> Script:
    """FAILED without any reason."""
    return _failing_script(after_s, {})


def canceled(after_s: float = 10.0) -> Script:
    """FAILED with error type CANCELED, as if somebody had canceled it."""
    return Script((*_running_steps(after_s), Step(after_s, CANCELED)))


def interrupted(after_s: float = 10.0) -> Script:
    """FAILED with error type CANCELED and a message about a restart, as a service's restart ends tasks."""
    return Script((*_running_steps(after_s), Step(after_s, INTERRUPTED)))


# No end


def stays_pending() -> Script:
    return Script()


def runs_forever(cancelable: bool = True, cancel_takes_s: float = 0.5) -> Script:
    """RUNNING at 10 % until somebody cancels it."""
    steps = (Step(0.0, {"status": "RUNNING", "progress": progress(10)}),)
    return Script(steps, cancelable=cancelable, cancel_takes_s=cancel_takes_s)


def unknown_status(status: str = "SUSPENDED", after_s: float = 0.0) -> Script:
    """A status that no version of the API contained when this was written."""
    return Script((Step(after_s, {"status": status, "progress": progress(10)}),))


# Oddities on the way to success


def odd_progress(progresses: Sequence[Fields | None], after_s: float = 10.0) -> Script:
    """RUNNING with each progress in turn (None for no progress at all), then SUCCEEDED."""
    pace_s = after_s / len(progresses)
    steps = [
        Step(n * pace_s, {"status": "RUNNING"}, ("progress",))
        if shown is None
        else Step(n * pace_s, {"status": "RUNNING", "progress": shown})
        for n, shown in enumerate(progresses)
    ]
    return Script((*steps, Step(after_s, {"status": "SUCCEEDED", "result": GOOD_RESULT})))


def progress_backwards(after_s: float = 10.0) -> Script:
    return odd_progress([progress(10), progress(60), progress(30), progress(90)], after_s)


def progress_without_total(after_s: float = 10.0) -> Script:
    return odd_progress([progress(0, 0), progress(5, 0)], after_s)


def progress_with_changing_total(after_s: float = 10.0) -> Script:
    return odd_progress([progress(1, 4), progress(2, 8), progress(6, 7)], after_s)


def without_progress(after_s: float = 10.0) -> Script:
    return odd_progress([None], after_s)


def cancelable_flips(after_s: float = 10.0) -> Script:
    """`cancelable` changes from true to false and back, and cancel obeys it."""
    pace_s = after_s / 4
    flips = [Step(n * pace_s, {"status": "RUNNING", "cancelable": n != 2, "progress": progress(n)}) for n in (1, 2, 3)]
    return Script((*flips, Step(after_s, {**DONE, "result": GOOD_RESULT})))


def without_end_time(after_s: float = 10.0) -> Script:
    return Script((*_running_steps(after_s), Step(after_s, {**DONE, "result": GOOD_RESULT}, ("end_time",))))


def _build_subtasks(ended: int, hosts: int) -> Fields:
    return {f"host-{n}": {"status": "SUCCEEDED" if n < ended else "RUNNING"} for n in range(hosts)}


def _running_steps(after_s: float, looks: int = 5) -> list[Step]:
    starts_s = after_s / 10
    pace_s = (after_s - starts_s) / max(looks, 1)
    return [
        Step(starts_s + n * pace_s, {"status": "RUNNING", "progress": progress(100 * n // looks)}) for n in range(looks)
    ]


def _failing_script(after_s: float, ending: Fields) -> Script:
    return Script((*_running_steps(after_s), Step(after_s, {"status": "FAILED", **ending})))


@lru_cache(maxsize=8)
def _build_text(size: int) -> str:
    return "0123456789abcdef" * (size // 16 + 1)


SCENARIOS: dict[str, Callable[..., Script]] = {
    scenario.__name__: scenario
    for scenario in (
        succeeds,
        succeeds_at_once,
        succeeds_without_result,
        succeeds_with_failed_result,
        blocked_then_succeeds,
        partial_results,
        changing_subtasks,
        large_result,
        bare_success,
        fails_with_error,
        fails_by_result,
        fails_with_error_and_result,
        fails_silently,
        canceled,
        interrupted,
        stays_pending,
        runs_forever,
        unknown_status,
        progress_backwards,
        progress_without_total,
        progress_with_changing_total,
        without_progress,
        cancelable_flips,
        without_end_time,
    )
}
