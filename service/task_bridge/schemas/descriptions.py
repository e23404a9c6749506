"""Descriptions of all fields of the schemas, and the limits that the contract sets. Pure.

Patterns use only what every regular expression engine supports: no lookaround, no `\\d`. In some engines `$` also
matches before a final line feed; where that matters, a `not` excludes it.
"""

from __future__ import annotations

from typing import Any

from ..domain import events
from ..domain.durations import MAX_DURATION_S
from ..domain.events import TYPE_PREFIX
from ..domain.task_ids import BLANKS, CONTROL, MAX_BYTES, PUNCTUATION, QUOTES

Schema = dict[str, Any]

KINDS, FINAL_OUTCOMES = events.KINDS, events.FINAL_OUTCOMES
REJECTED = f"{TYPE_PREFIX}.request.rejected.v1"

_N = r"[0-9]+(\.[0-9]+)?"
_ISO_TIME = f"T({_N}H({_N}M)?({_N}S)?|{_N}M({_N}S)?|{_N}S)"
_DURATION = f"^({_N}(ms|s|m|h|d)?|P({_N}D({_ISO_TIME})?|{_ISO_TIME}))$"
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"

_LINE_FEED = {"type": "string", "pattern": "\\n"}


def _field(description: str, **bounds: Any) -> Schema:
    """Describe a field. `since="1.1"` marks one that events of earlier releases lack, so it isn't required."""
    since = bounds.pop("since", None)
    return {"description": description, **({"x-since": since} if since else {}), **bounds}


def _time(description: str, **bounds: Any) -> Schema:
    text = f"{description} RFC 3339 in UTC with milliseconds."
    return _field(text, format="date-time", pattern=_TIME, **bounds)


def _duration(description: str, *text_limits: Schema, **number_limits: Any) -> Schema:
    number = {"type": "number", "maximum": int(MAX_DURATION_S), **number_limits}
    text = {"type": "string", "maxLength": 64, "pattern": _DURATION, "not": _LINE_FEED}
    return {
        "description": f"{description} A number of seconds, or text like 90s, 15m, 2h, 7d, PT2H. At most 365 days.",
        "anyOf": [number, {"allOf": [text, *text_limits]}, {"type": "null"}],
    }


_AROUND = f"[{BLANKS}{QUOTES}]*"
TASK_ID: Schema = {
    "title": "TaskId",
    "description": "A task id, 1 to 256 bytes of UTF-8: as vCenter returns it for `?vmw-task=true`, or the id of a "
    "classic task like `task-123`, also as tools print it (`Task:task-123`, `Task-task-123`, `vim.Task:task-123`). "
    "Blanks and quotes around it don't count. The id of a task of an ESXi host itself (`haTask-…`) is refused.",
    "type": "string",
    "pattern": f"^{_AROUND}[^{CONTROL}{PUNCTUATION}]{{1,{MAX_BYTES}}}{_AROUND}$",
    "not": {
        "anyOf": [
            {"pattern": rf"^{_AROUND}\.{{1,2}}{_AROUND}$"},
            {"pattern": rf"^{_AROUND}((vim\.)?Task[:-])?haTask-"},
        ]
    },
}

_VCENTER_NAME = "^[a-z0-9]+(_[a-z0-9]+)*$"
_REQUESTED_VCENTER = _field("The vCenter. Default: the only one configured, or `BRIDGE_DEFAULT_VCENTER`.")
_VCENTER = _field("The configured name of the vCenter.", maxLength=63, pattern=_VCENTER_NAME)
_TASK = _field("The task's id.", minLength=1)
_STREAM = _field("The stream that holds the events. Consumers must name it.")
_EVENTS = _field("The subject filter of the task's events.")
_VCENTER_STATE = _field("Whether the vCenter can be polled, by the replicas that poll it.", since="1.1")
_WATCH = _field("The watch. Its id, timeout and labels are its own, not the requester's.")

_FOLLOW_NAME = _field(
    "The name of the follow: words of a-z and 0-9, joined by single hyphens.",
    maxLength=63,
    pattern="^[a-z0-9]+(-[a-z0-9]+)*$",
)
_FOLLOW = _field("The follow in force: the request with its defaults.")

DESCRIPTIONS: dict[str, dict[str, Schema]] = {
    "TaskRequest": {"task": {}, "vcenter": _REQUESTED_VCENTER},
    "WatchRequest": {
        "task": {},
        "vcenter": _REQUESTED_VCENTER,
        # A duration in text is above 0 if and only if one of its digits isn't 0.
        "timeout": _duration(
            "Ends the watch, never the task. Without one the watch lasts until the task ends.",
            {"pattern": "[1-9]"},
            exclusiveMinimum=0,
        ),
        "stalled_after": _duration(
            "Publish one `stalled` event when nothing changed for this long. 0: never; null: `BRIDGE_STALLED_AFTER`.",
            minimum=0,
        ),
        "partial_results": _field("Follow results that change before the end: every event carries the newest result."),
        "details": _field(
            "Ask with each poll for all that vCenter knows of a CIS task: every event carries `extra`, and a change of "
            "it alone is a `progress` event. Without effect for classic tasks."
        ),
        "labels": _field("Copied into every event of the watch."),
    },
    "FollowNameRequest": {"name": _FOLLOW_NAME, "vcenter": _REQUESTED_VCENTER},
    "FollowsRequest": {"vcenter": _field("List only the follows of this vCenter.")},
    "FollowRequest": {
        "name": _FOLLOW_NAME,
        "vcenter": _REQUESTED_VCENTER,
        "apis": _field(
            "`vim` for classic tasks, `cis` for tasks of the REST API. Default: `vim`, and `cis` too if `services` "
            "names one of its services."
        ),
        "services": _field(
            "Follow tasks of these services only: `VirtualMachine` (classic tasks), "
            "`com.vmware.esx.settings.clusters.software`. CIS tasks need at least one, as vCenter lists none without."
        ),
        "operations": _field("Names of operations; `*` stands for any characters, `!` before a name excludes it."),
        "users": _field(r"Follow tasks of these users only: `VSPHERE.LOCAL\deploy` or `deploy@VSPHERE.LOCAL`."),
        "entity": _field("Follow tasks on this object only."),
        "top_level_only": _field("Leave out tasks that have a parent."),
        "since": _field("`now`, a time, or a duration ago: follow tasks that were queued since then."),
        "events": _field("`endings`: watches of this follow publish only their final event."),
        "timeout": _duration(
            "The `timeout` of each watch that the follow starts.", {"pattern": "[1-9]"}, exclusiveMinimum=0
        ),
        "stalled_after": _duration("The `stalled_after` of each watch that the follow starts.", minimum=0),
        "labels": _field("The labels of each watch that the follow starts."),
    },
    "EntityRequest": {
        "id": _field("The id of a managed object: `group-v3`, `vm-98`, `domain-c9`, `host-12`."),
        "recursive": _field("Follow tasks on everything below the object, too."),
    },
    "ListRequest": {
        "vcenter": _field("List only the watches of this vCenter."),
        "limit": _field("The most watches in a page. A page has fewer if they don't fit into a reply."),
        "cursor": _field("The `cursor` of the previous reply.", pattern="^[0-9]{1,18}$", **{"not": _LINE_FEED}),
    },
    "CloudEvent": {
        "id": _field(
            "`<watch id>/<sequence>`. Remember the ids you have handled and you never act twice.",
            pattern="^[!-.0-~]+/[0-9]+$",
        ),
        "source": _field("The configured URL of the vCenter.", minLength=1, format="uri-reference"),
        "type": _field("What happened.", pattern=rf"^{TYPE_PREFIX.replace('.', '[.]')}[.]task[.][a-z_]+[.]v1$"),
        "subject": _TASK,
        "time": _time("When the bridge saw it happen, by nats-server's clock."),
        "outcome": _field("The same as `data.outcome`; on final events only."),
        "traceparent": _field("The requester's W3C trace context, if it sent one."),
        "tracestate": _field("The requester's `tracestate`, if it sent one."),
        "data": {},
    },
    "EventData": {
        "vcenter": _VCENTER,
        "api": _field(
            "The API that has the task: `cis` is the tasks service of vCenter's REST API, `vim` the Web Services API "
            "with the classic tasks."
        ),
        "task": _TASK,
        "watch": _WATCH,
        "kind": _field("What happened. More kinds can appear; decide by `final`.", pattern="^[a-z_]+$"),
        "outcome": _field("How it ended; on final events only. More outcomes can appear.", pattern="^[a-z_]+$"),
        "final": _field("True on the one final event of the watch."),
        "sequence": _field(
            "1, 2, 3… over the events of a watch, without gaps. It jumps to 13 digits if the events before had gone.",
            minimum=1,
        ),
        "status": _field(
            "vCenter's own word: PENDING, RUNNING, BLOCKED (not an end), SUCCEEDED, FAILED, or one that a later "
            "vCenter adds. Null if vCenter never showed the task.",
            minLength=1,
        ),
        "previous_status": _field("The status in the previous event; null in the first.", minLength=1),
        "service": _field("The service that runs the task.", minLength=1),
        "operation": _field("The operation of that service.", minLength=1),
        "description": _field("The task's description, in English.", minLength=1),
        "target": _field("The object that the task works on."),
        "parent": _field("The id of the parent task.", minLength=1),
        "root": _field("The id of the first task of the chain that the task belongs to.", since="1.1", minLength=1),
        "user": _field("The user who started the task.", minLength=1),
        "initiator": _field("What started the task. Null where vCenter doesn't say.", since="1.1"),
        "cancelable": _field("True if vCenter can cancel the task now."),
        "cancel_requested": _field(
            "True if somebody asked to cancel the task, which may still run. Null for CIS tasks.", since="1.1"
        ),
        "progress": _field("How far the task is."),
        "error": _field("The reason, on `completed.failed`, `completed.canceled` and `abandoned`; otherwise null."),
        "result": _field(
            "The result as JSON if `result_state` is `inline`; otherwise null. A data object of a classic task has its "
            "type as `_type` where vCenter sends it."
        ),
        "result_state": _field(
            "`inline`: in `result`. `stored`: in the object store, at `result_ref`. `none`: vCenter has none, or this "
            "event carries none. `unavailable`: there was one, but it couldn't be fetched or stored.",
            enum=["inline", "stored", "none", "unavailable"],
        ),
        "result_ref": _field(
            "The place of a `stored` result: one above 262,144 bytes, or larger than the server takes."
        ),
        "extra": _field(
            "Fields of vCenter's answer beyond the documented ones, such as `subtasks` and `notifications`: on "
            "`completed`, and on every event if the request has `details`. For classic tasks, on every event: "
            "`queueTime`, `eventChainId`, `activationId` and the `question` that blocks the task. Above 64 KiB it is "
            '`{"truncated": true, "bytes": <size>}`.'
        ),
        "queued_at": _time("When the task was queued, by vCenter's clock. Null for CIS tasks.", since="1.1"),
        "started_at": _time("When the task started, by vCenter's clock."),
        "ended_at": _time("When the task ended, by vCenter's clock."),
        "duration_seconds": _field("`ended_at` - `started_at`."),
        "unchanged_since": _time("When the bridge saw the last change. Null if vCenter never showed the task."),
    },
    "FollowCloudEvent": {
        "id": _field("`<follow id>/<sequence>`.", pattern="^[!-.0-~]+/[0-9]+$"),
        "source": _field("The configured URL of the vCenter.", minLength=1, format="uri-reference"),
        "type": _field("What happened.", pattern=rf"^{TYPE_PREFIX.replace('.', '[.]')}[.]follow[.][a-z_]+[.]v1$"),
        "subject": _FOLLOW_NAME,
        "time": _time("When it happened, by nats-server's clock."),
        "data": {},
    },
    "FollowEventData": {
        "vcenter": _VCENTER,
        "name": _FOLLOW_NAME,
        "follow": _FOLLOW,
        "kind": _field("`following`, `gap` or `unfollowed`. More kinds can appear.", pattern="^[a-z_]+$"),
        "final": _field("True on the one final event of the follow."),
        "sequence": _field("1, 2, 3… over the events of a follow, without gaps.", minimum=1),
        "reason": _field(
            "Of `following`: `started`, `resumed`, `replaced` or `progressed` (its place was stored again). Of `gap`: "
            "a sentence."
        ),
        "from": _time("On `gap`: where the span begins, by vCenter's clock. Null otherwise."),
        "to": _time("On `gap`: where the span ends, by vCenter's clock. Null otherwise."),
        "place": _field("How far the follow has come in vCenter's history; null before it was read."),
        "started_watches": _field("How many watches the follow has started.", minimum=0),
        "gaps": _field("How many gaps it had.", minimum=0),
    },
    "PlaceView": {
        "begins_at": _time("Tasks queued from then on are followed, by vCenter's clock."),
        "complete_until": _time(
            "Every task that matches and was queued until then, by vCenter's clock, has a watch, but for gaps."
        ),
        "task": _field("The matching task that was queued last.", minLength=1),
        "queued_at": _time("When that task was queued, by vCenter's clock."),
    },
    "FollowView": {
        "id": _field("The follow's id: ASCII without `/`.", pattern="^[!-.0-~]+$"),
        "apis": _field("`vim`, `cis` or both."),
        "services": _field("The services; empty: all."),
        "operations": _field("The patterns of operations; empty: all."),
        "users": _field("The users; empty: all."),
        "entity": _field("The object; null: all."),
        "top_level_only": _field("True if tasks that have a parent are left out."),
        "since": _field("From when on tasks are followed, as requested.", minLength=1),
        "events": _field("`all` or `endings`."),
        "timeout": _field("The timeout of each watch in seconds; null: none."),
        "stalled_after": _field("`stalled_after` of each watch in seconds; 0: never."),
        "labels": _field("The labels of each watch."),
    },
    "FollowEntity": {
        "id": _field("The id of the managed object.", minLength=1),
        "recursive": _field("True if everything below the object is followed, too."),
    },
    "FollowReply": {
        "outcome": _field("`accepted`, `already_following` or `updated`."),
        "vcenter": _VCENTER,
        "name": _FOLLOW_NAME,
        "follow": _FOLLOW,
    },
    "UnfollowReply": {
        "outcome": _field("", const="unfollowed"),
        "vcenter": _VCENTER,
        "name": _FOLLOW_NAME,
        "follow": _FOLLOW,
    },
    "FollowsReply": {"follows": _field("The follows, oldest request first.")},
    "ListedFollow": {
        "vcenter": _VCENTER,
        "name": _FOLLOW_NAME,
        "follow": _FOLLOW,
        "state": _field(
            "`starting`, `following`, `slowed` (by `BRIDGE_FOLLOW_MAX_RATE`), `waiting` (vCenter can't be read), "
            "`unconfigured` (no replica has the vCenter) or `unheld` (no replica reports it).",
            pattern="^[a-z_]+$",
        ),
        "reason": _field("Why it is in that state, if something is wrong."),
        "since": _time("From when on tasks are followed, by vCenter's clock. Null until vCenter was read."),
        "last_task_at": _time("When the newest found task was queued, by vCenter's clock. Null without one."),
        "started_watches": _field("How many watches the follow has started.", minimum=0),
        "gaps": _field("How many gaps it had.", minimum=0),
    },
    "WatchRef": {
        "id": _field("The watch's id: ASCII without `/`.", pattern="^[!-.0-~]+$"),
        "since": _time("When the request was stored."),
        "timeout_at": _time("When the watch ends at the latest; null: never."),
        "labels": _field("The labels of the request."),
        "follow": _field("The name of the follow that started the watch; null if it was requested.", since="1.1"),
    },
    "Target": {
        "type": _field("Like `ClusterComputeResource`.", minLength=1),
        "id": _field("The id of the object, like `domain-c9`.", minLength=1),
        "name": _field(
            "The name of the object as vCenter spells it: `%2f` is a slash, `%5c` a backslash, `%25` a percent sign. "
            "Null if it isn't known.",
            since="1.1",
            minLength=1,
        ),
        "path": _field(
            "Its inventory path, like `/DC/vm/web/web01`, without the root folder. Null if it isn't known.",
            since="1.1",
            minLength=1,
        ),
    },
    "Initiator": {
        "type": _field(
            "`user`, `schedule` (a scheduled task), `alarm`, `system`, or vCenter's type of another reason.",
            minLength=1,
        ),
        "name": _field("The name of the user, scheduled task or alarm; null for `system`.", minLength=1),
    },
    "Progress": {
        "completed": _field("The completed units, as vCenter sent them."),
        "total": _field("The total units, as vCenter sent them."),
        "percent": _field(
            "`completed` of `total` in percent, with one decimal; null unless `total` is above 0 and `completed` isn't "
            "negative.",
            minimum=0,
            maximum=100,
        ),
        "message": _field("What the task does now, in English.", minLength=1),
    },
    "TaskError": {
        "type": _field(
            "One of `com.vmware.vapi.std.errors`, like `INTERNAL_SERVER_ERROR`; of a classic task the fault's "
            "type, like `InvalidState`.",
            minLength=1,
        ),
        "message": _field("One sentence; never empty.", minLength=1),
        "messages": _field("vCenter's messages in vCenter's order, with the cause last."),
        "transient": _field("True if vCenter says that a retry may help, false if it says that it won't."),
        "data": _field(
            "More data about the error, as vCenter sent it; of a classic task the fault's own properties; of a CIS "
            "task whose error has an undocumented shape, the whole error. Above 64 KiB it is "
            '`{"truncated": true, "bytes": <size>}`.'
        ),
    },
    "Message": {
        "id": _field("The id of the message, for translations."),
        "text": _field("The message in English, with its arguments filled in.", minLength=1),
        "args": _field("The arguments."),
    },
    "ResultRef": {
        "bucket": _field("The object store bucket."),
        "name": _field("The name of the object in the bucket."),
        "size": _field("The size in bytes.", minimum=0),
        "sha256": _field("The SHA-256 of the content, in hex.", pattern="^[0-9a-f]{64}$"),
    },
    "WatchReply": {
        "outcome": _field("`accepted`, `already_watching` or `already_completed`."),
        "vcenter": _VCENTER,
        "task": _TASK,
        "watch": _WATCH,
        "stream": _STREAM,
        "events": _EVENTS,
        "last_event": _field("The newest event of this watch; null before the first."),
        "vcenter_state": _VCENTER_STATE,
    },
    "GetReply": {
        "watching": _field("True if the task is being watched now."),
        "vcenter": _VCENTER,
        "task": _TASK,
        "watch": _WATCH,
        "stream": _STREAM,
        "events": _EVENTS,
        "last_event": _field("The newest event of this watch; null before the first."),
        "vcenter_state": _VCENTER_STATE,
    },
    "VCenterState": {
        "state": _field(
            "`ok`; `degraded` (polls or logins fail), `unreachable` (no connection, or no answer), `refused` (the user "
            "name or the password), `unconfigured` (no running replica has this vCenter in its settings). Unless it is "
            "`ok`, events may come late or not at all."
        ),
        "reason": _field("What fails and what to do; null while nothing does."),
        "since": _field("When it began to fail (RFC 3339); null while nothing does."),
    },
    "ListedWatch": {
        "vcenter": _VCENTER,
        "task": _TASK,
        "watch": _WATCH,
        "status": _field("The task's status; null before the first poll."),
        "progress": _field("The task's progress; null before the first poll."),
        "unconfigured": _field("True if the vCenter is no longer configured, so that the task isn't polled."),
        "target": _field("The object that the task works on; null before the first poll.", since="1.1"),
        "vcenter_state": _VCENTER_STATE,
    },
    "ListReply": {
        "watches": _field("The watches, oldest request first."),
        "total": _field("The number of all watches of all replicas.", minimum=0),
        "cursor": _field("Send it to get the next page; null on the last page."),
    },
    "UnwatchReply": {
        "outcome": _field("", const="unwatched"),
        "vcenter": _VCENTER,
        "task": _TASK,
        "watch": _WATCH,
        "last_event": _field("The final event."),
    },
    "CancelReply": {"outcome": _field("", const="cancel_requested"), "vcenter": _VCENTER, "task": _TASK},
    "ErrorBody": {
        "status": _field("The status code, as in HTTP.", minimum=400, maximum=599),
        "code": _field(
            "`invalid_request`, `forbidden`, `unknown_vcenter`, `unknown_task`, `not_watched`, `already_ended`, "
            "`not_cancelable`, `vcenter_unavailable`, `unavailable`. More can appear.",
            pattern="^[a-z_]+$",
        ),
        "message": _field("What happened and what to do.", minLength=1),
        "details": _field("The problems, by field."),
    },
    "ErrorDetail": {
        "field": _field("The path of the field; empty for the request itself."),
        "problem": _field("What is wrong with it."),
    },
}
