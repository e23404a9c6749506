"""What the models don't say of themselves: a word on each field, and the bounds that the contract sets. Pure.

Patterns stay within what every regular expression engine knows: no lookaround, no `\\d`. In some a `$` also matches
before a last line feed, so where that matters a `not` excludes it.
"""

from __future__ import annotations

from typing import Any

from ..domain.durations import MAX_DURATION_S
from ..domain.events import TYPE_PREFIX

Schema = dict[str, Any]

KINDS = ("watching", "status", "progress", "stalled")
FINAL_OUTCOMES = {
    "completed": ("succeeded", "failed", "canceled"),
    "abandoned": ("lost", "denied", "watch_timed_out", "unwatched"),
}
REJECTED = f"{TYPE_PREFIX}.request.rejected.v1"

_N = r"[0-9]+(\.[0-9]+)?"
_ISO_TIME = f"T({_N}H({_N}M)?({_N}S)?|{_N}M({_N}S)?|{_N}S)"
_DURATION = f"^({_N}(ms|s|m|h|d)?|P({_N}D({_ISO_TIME})?|{_ISO_TIME}))$"
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"

_LINE_FEED = {"type": "string", "pattern": "\\n"}


def _said(description: str, **bounds: Any) -> Schema:
    return {"description": description, **bounds}


def _time(description: str) -> Schema:
    return _said(f"{description} RFC 3339 in UTC with milliseconds.", format="date-time", pattern=_TIME)


def _duration(description: str, *written: Schema, **number: Any) -> Schema:
    seconds = {"type": "number", "maximum": int(MAX_DURATION_S), **number}
    text = {"type": "string", "maxLength": 64, "pattern": _DURATION, "not": _LINE_FEED}
    told = f"{description} A number of seconds, or like 90s, 15m, 2h, 7d, PT2H; at most 365 days."
    return {"description": told, "anyOf": [seconds, {"allOf": [text, *written]}, {"type": "null"}]}


TASK_ID: Schema = {
    "title": "TaskId",
    "description": "A task id: as `?vmw-task=true` answers it, 1 to 256 bytes of UTF-8, or a classic task's like "
    "`task-123`, also as tools print it: `Task:task-123`.",
    "type": "string",
    "minLength": 1,
    "maxLength": 256,
    "not": {
        "anyOf": [
            {"pattern": r"[\x00-\x1f\x7f-\x9f/?#]"},
            {"enum": [".", ".."]},
        ]
    },
}

_VCENTER_NAME = "^[a-z0-9]+(_[a-z0-9]+)*$"
_WHICH = _said("Which vCenter; else the only one configured, or `BRIDGE_DEFAULT_VCENTER`.")
_NAMED = _said("The configured name of the vCenter.", maxLength=63, pattern=_VCENTER_NAME)
_TASK = _said("The task's id.", minLength=1)
_STREAM = _said("The stream that holds the events; consumers name it.")
_EVENTS = _said("The subject filter of the task's events.")
_REF = _said("The watch: its id, timeout and labels are its own, not the requester's.")

DESCRIPTIONS: dict[str, dict[str, Schema]] = {
    "TaskRequest": {"task": {}, "vcenter": _WHICH},
    "WatchRequest": {
        "task": {},
        "vcenter": _WHICH,
        # Some digit must not be a 0, which is all that makes a written duration above 0.
        "timeout": _duration(
            "Ends the watch, never the task. Without one the watch lasts until the task ends.",
            {"pattern": "[1-9]"},
            exclusiveMinimum=0,
        ),
        "stalled_after": _duration(
            "A task without any change for this long is told once; 0 is never, null is `BRIDGE_STALLED_AFTER`.",
            minimum=0,
        ),
        "partial_results": _said("Follow results that change before the end: every event carries the newest."),
        "labels": _said("Copied into every event of the watch."),
    },
    "ListRequest": {
        "vcenter": _said("Of this vCenter only."),
        "limit": _said("Watches a page at most: it has fewer where they fill a reply."),
        "cursor": _said("The one of the reply before.", pattern="^[0-9]{1,18}$", **{"not": _LINE_FEED}),
    },
    "CloudEvent": {
        "id": _said("`<watch id>/<sequence>`; whoever remembers ids never acts twice.", pattern="^[!-.0-~]+/[0-9]+$"),
        "source": _said("The configured URL of the vCenter.", minLength=1, format="uri-reference"),
        "type": _said("What happened.", pattern=rf"^{TYPE_PREFIX.replace('.', '[.]')}[.]task[.][a-z_]+[.]v1$"),
        "subject": _TASK,
        "time": _time("When the bridge saw it."),
        "outcome": _said("The same as in `data`, on final events only."),
        "traceparent": _said("The requester's W3C trace context, if it sent one."),
        "tracestate": _said("Goes with `traceparent`."),
        "data": {},
    },
    "EventData": {
        "vcenter": _NAMED,
        "api": _said(
            "Where the task lives: `cis` is vCenter's tasks service of the REST API, `vim` the Web Services API, "
            "which has the classic tasks."
        ),
        "task": _TASK,
        "watch": _REF,
        "kind": _said("What happened; more kinds may come. `final` tells an ending.", pattern="^[a-z_]+$"),
        "outcome": _said("How it ended, on final events; more may come.", pattern="^[a-z_]+$"),
        "final": _said("Whether this is the watch's one ending."),
        "sequence": _said("1, 2, 3… over the events of a watch, without gaps.", minimum=1),
        "status": _said(
            "vCenter's own word: PENDING, RUNNING, BLOCKED (not an end), SUCCEEDED, FAILED, or one that it has yet "
            "to invent. Null when vCenter never showed the task.",
            minLength=1,
        ),
        "previous_status": _said("The status of the event before; null in the first.", minLength=1),
        "service": _said("Which service runs the task.", minLength=1),
        "operation": _said("Which of its operations.", minLength=1),
        "description": _said("What the task does, in English.", minLength=1),
        "target": _said("What the task works on."),
        "parent": _said("The id of the parent task.", minLength=1),
        "user": _said("Who started the task.", minLength=1),
        "cancelable": _said("Whether vCenter would cancel it."),
        "progress": _said("How far it is."),
        "error": _said("Why, on `completed.failed`, `completed.canceled` and `abandoned`; null else."),
        "result": _said("The result as JSON when `result_state` is `inline`, else null."),
        "result_state": _said(
            "`inline`: in `result`. `stored`: in the object store, where `result_ref` says. `none`: vCenter has "
            "none, or this event carries none. `unavailable`: there was one that couldn't be fetched or stored.",
            enum=["inline", "stored", "none", "unavailable"],
        ),
        "result_ref": _said("Where a result above 262,144 bytes lies."),
        "extra": _said(
            "On `completed`: what vCenter's answer carries beyond its documented fields, up to 64 KiB. Of a "
            "classic task always: `queueTime`, `eventChainId`, `activationId`, and the `question` that blocks it."
        ),
        "started_at": _time("When the task started, by vCenter's clock."),
        "ended_at": _time("When it ended, by vCenter's clock."),
        "duration_seconds": _said("`ended_at` - `started_at`."),
        "unchanged_since": _time("When the bridge saw the last change; null when vCenter never showed the task."),
    },
    "WatchRef": {
        "id": _said("The watch's id: ASCII without `/`.", pattern="^[!-.0-~]+$"),
        "since": _time("When the request was stored."),
        "timeout_at": _time("When the watch ends at the latest; null is never."),
        "labels": _said("As the request gave them."),
    },
    "Target": {
        "type": _said("Like `ClusterComputeResource`.", minLength=1),
        "id": _said("Like `domain-c9`.", minLength=1),
        "name": _said("What people call it; only there where vCenter tells it.", minLength=1),
    },
    "Progress": {
        "completed": _said("As vCenter sent it."),
        "total": _said("As vCenter sent it."),
        "percent": _said("One decimal; null when there is no total.", minimum=0, maximum=100),
        "message": _said("What it does now, in English.", minLength=1),
    },
    "TaskError": {
        "type": _said(
            "One of `com.vmware.vapi.std.errors`, like `INTERNAL_SERVER_ERROR`; of a classic task the fault's "
            "type, like `InvalidState`.",
            minLength=1,
        ),
        "message": _said("One sentence; never empty.", minLength=1),
        "messages": _said("vCenter's messages in its order, the cause last."),
        "transient": _said("Whether vCenter says that trying again may help."),
        "data": _said("What vCenter adds, as it sent it."),
    },
    "Message": {
        "id": _said("The message's key, for those who translate."),
        "text": _said("In English, arguments filled in.", minLength=1),
        "args": _said("What was filled in."),
    },
    "ResultRef": {
        "bucket": _said("The object store bucket."),
        "name": _said("The object in it."),
        "size": _said("Bytes.", minimum=0),
        "sha256": _said("Of those bytes, in hex.", pattern="^[0-9a-f]{64}$"),
    },
    "WatchReply": {
        "outcome": _said("`accepted`, `already_watching` or `already_completed`."),
        "vcenter": _NAMED,
        "task": _TASK,
        "watch": _REF,
        "stream": _STREAM,
        "events": _EVENTS,
        "last_event": _said("The newest event of this watch; null before its first."),
    },
    "GetReply": {
        "watching": _said("Whether the task is being watched now."),
        "vcenter": _NAMED,
        "task": _TASK,
        "watch": _REF,
        "stream": _STREAM,
        "events": _EVENTS,
        "last_event": _said("The newest event of this watch; null before its first."),
    },
    "ListedWatch": {
        "vcenter": _NAMED,
        "task": _TASK,
        "watch": _REF,
        "status": _said("Null before the first look."),
        "progress": _said("Null before the first look."),
        "unconfigured": _said("Whether its vCenter is no longer configured, so that nobody looks."),
    },
    "ListReply": {
        "watches": _said("Oldest request first."),
        "total": _said("How many there are in all, over all replicas.", minimum=0),
        "cursor": _said("Asks for the next page; null on the last."),
    },
    "UnwatchReply": {
        "outcome": _said("", const="unwatched"),
        "vcenter": _NAMED,
        "task": _TASK,
        "watch": _REF,
        "last_event": _said("The final event."),
    },
    "CancelReply": {"outcome": _said("", const="cancel_requested"), "vcenter": _NAMED, "task": _TASK},
    "ErrorBody": {
        "status": _said("As in HTTP.", minimum=400, maximum=599),
        "code": _said(
            "`invalid_request`, `forbidden`, `unknown_vcenter`, `unknown_task`, `not_watched`, `already_ended`, "
            "`not_cancelable`, `vcenter_unavailable`, `unavailable`; more may come.",
            pattern="^[a-z_]+$",
        ),
        "message": _said("What happened and what to do, in a sentence.", minLength=1),
        "details": _said("What is wrong, by field."),
    },
    "ErrorDetail": {
        "field": _said("The field's path; empty is the request itself."),
        "problem": _said("What about it."),
    },
}
