"""Checks of everything that the bridge depends on, each with the fix if it fails.

A check creates nothing and publishes no event. It tries a password once, because SSO counts failed logins.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from nats.aio.client import Client

from . import __version__
from .domain.clock import ServerClock, describe_difference
from .domain.errors import CannotStart, NatsUnavailable, VCenterUnavailable
from .domain.subjects import SubjectNames
from .jetstream import permissions
from .jetstream.connection import Connection, server_version
from .jetstream.delivery_consumer import DeliveryConsumers
from .jetstream.permissions import Right
from .jetstream.provision import (
    Difference,
    JetStreamConfig,
    check_version,
    delivery_subjects,
    expected_config,
    find_late_subjects,
    follow_events,
    missing_part,
    provision,
    provision_streams,
)
from .jetstream.streams import Streams
from .metrics import Metrics
from .settings import Settings, VCenterSettings
from .vcenter.cis.api import BadAnswer, CisTasksApi, MissingTask
from .vcenter.cis.renderings import LOGIN_CALLS, UNKNOWN_TASK, Refusal
from .vcenter.cis.session import CisSession
from .vcenter.http import VCenterHttp
from .vcenter.shared import DiscoveryTurns, ResultQueue, SharedVCenter
from .vcenter.vim.api import fetch_labels
from .vcenter.vim.history import close_history, open_history, read_page
from .vcenter.vim.session import VimSession

REACH_S, ANSWER_S = 5.0, 20.0
OUT_OF_REACH = 4
_ALLOW = "allow it for the bridge's NATS user, as deploy/nats does"
_ENDS_1_0 = ". No bridge of release 1.0 starts after that"


class CheckResult(NamedTuple):
    """The result of one check. If it isn't `ok`, the message says what is wrong and how to fix it.

    The bridge works without what isn't `needed`.
    """

    about: str
    message: str
    ok: bool = True
    needed: bool = True


@asynccontextmanager
async def connect_or_explain(settings: Settings) -> AsyncIterator[Client]:
    """Yield a connection to NATS. Raises CannotStart if it is refused, or isn't there in time (exit code 4)."""
    connection = Connection(settings.nats, f"task-bridge {__version__}")
    try:
        try:
            async with asyncio.timeout(REACH_S):
                client = await connection.open()
        except TimeoutError:
            urls, reason = ", ".join(settings.nats.urls), connection.reason or "no answer in time"
            message = f"NATS at {urls} is out of reach ({reason}). Start it, or set BRIDGE_NATS_URL to its address."
            raise CannotStart(message, exit_code=OUT_OF_REACH) from None
        yield client
    finally:
        await connection.close()


def expected_jetstream(settings: Settings) -> JetStreamConfig:
    """Return the streams, consumers and bucket that these settings require."""
    return expected_config(
        SubjectNames(settings.subject_prefix),
        replicas=settings.stream_replicas,
        ack_wait_s=settings.ack_wait_s,
        events_max_age_s=settings.events_max_age_s,
    )


async def run_checks(settings: Settings) -> AsyncIterator[CheckResult]:
    """Run all checks in order. A check is skipped if what it needs has failed."""
    try:
        async with connect_or_explain(settings) as client:
            async for result in _check_nats(settings, client):
                yield result
    except CannotStart as error:
        yield CheckResult("NATS", str(error), ok=False)
    for vcenter in settings.vcenters.values():
        async for result in _check_vcenter(vcenter):
            yield result


# NATS


async def _check_nats(settings: Settings, client: Client) -> AsyncIterator[CheckResult]:
    where = client.connected_url.netloc if client.connected_url else ", ".join(settings.nats.urls)
    yield CheckResult("NATS", f"connected to {where}, login: {settings.nats.login}")
    version = server_version(client)
    try:
        check_version(version)
        yield CheckResult("NATS version", ".".join(map(str, version)))
    except CannotStart as error:
        yield CheckResult("NATS version", str(error), ok=False)
    streams, expected = Streams(client, settings.nats.js_domain), expected_jetstream(settings)
    try:
        differences = (await provision(streams, expected.without_follows(), create=False)).differences
    except NatsUnavailable as error:
        yield CheckResult("JetStream", str(error), ok=False)
        differences = None
    else:
        yield CheckResult("JetStream", "answers")
        yield await _check_clock(streams, SubjectNames(settings.subject_prefix).events_stream)
    for result in await _check_streams_and_permissions(settings, streams, differences):
        yield result
    for result in await _check_follows(settings, streams, differences):
        yield result


async def _check_clock(streams: Streams, stream: str) -> CheckResult:
    """Compare this host's clock with nats-server's. The bridge works if they differ, but people compare times."""
    clock = ServerClock(time.time, time.monotonic)
    try:
        await streams.measure_clock(stream, clock)
    except NatsUnavailable as error:
        return CheckResult("clock", f"can't be compared with nats-server's: {error}", ok=False, needed=False)
    if clock.difference_s is None:
        return CheckResult("clock", "isn't compared with nats-server's before the streams exist")
    if reason := describe_difference(clock.difference_s):
        return CheckResult("clock", reason, ok=False, needed=False)
    return CheckResult("clock", f"differs by {abs(clock.difference_s):.1f} s from nats-server's")


async def _check_streams_and_permissions(
    settings: Settings, streams: Streams, differences: list[Difference] | None
) -> list[CheckResult]:
    """Check what watches and the configured deliveries need.

    `differences` are those of the parts that watches need, None if these couldn't be read.
    """
    client, api, names = streams.connection, streams.prefix, SubjectNames(settings.subject_prefix)
    create = settings.provision == "auto"
    unsafe = [one for one in differences or () if one.unsafe]
    of_deliveries = await _find_missing_of_deliveries(settings, streams, differences or [])
    to_create = permissions.creation_rights(names, api, unsafe) if create else []
    needed = permissions.required_rights(names, api, client.new_inbox()) + to_create
    needed += permissions.delivery_rights(names, api, settings.deliveries)
    needed += permissions.creation_rights(names, api, of_deliveries) if create else []
    optional = permissions.reply_rights()
    try:
        denied = await permissions.find_missing_rights(client, needed + optional)
    except NatsUnavailable as error:
        return [CheckResult("permissions", str(error), ok=False)]
    may_create = create and not set(to_create) & set(denied)
    results = []
    if differences is not None:
        fix = _choose_fix(settings, may_create=may_create)
        results += _describe_streams(differences, fix, may_create=may_create)
    if not create:
        fix = f"{_choose_fix(settings, may_create=False)} with these deliveries{_ENDS_1_0}"
        results += _describe_problems(of_deliveries, fix, ok=False)
    results += _describe_permissions([right for right in denied if right in needed])
    if without := [right for right in denied if right in optional]:
        message = f"{_list_rights(without)}; replies need it unless allow_responses is set; {_ALLOW}"
        results.append(CheckResult("permissions", message, ok=False, needed=False))
    return results


async def _find_missing_of_deliveries(
    settings: Settings, streams: Streams, differences: list[Difference]
) -> list[Difference]:
    """Return what the configured deliveries need in JetStream and don't find."""
    names = SubjectNames(settings.subject_prefix)
    consumers, missing = DeliveryConsumers(streams, names), []
    for delivery in settings.deliveries:
        with contextlib.suppress(NatsUnavailable):  # without the right to read it: the permissions show that
            if await consumers.read(delivery) is None:
                missing.append(missing_part(f"consumer {names.events_stream}/{consumers.name_consumer(delivery)}"))
    if settings.deliveries:
        missing += find_late_subjects(differences, delivery_subjects(names))
    return missing


async def _check_follows(
    settings: Settings, streams: Streams, differences: list[Difference] | None
) -> list[CheckResult]:
    """Check what only follows and subjects for one vCenter need, which a NATS prepared for release 1.0 doesn't have.

    `differences` are those of the parts that watches need, None if these couldn't be read.
    """
    api, names = streams.prefix, SubjectNames(settings.subject_prefix)
    create, expected = settings.provision == "auto", expected_jetstream(settings).only_follows()
    late, missing = find_late_subjects(differences or (), [follow_events(names)]), []
    client = streams.connection
    try:
        denied = await permissions.find_missing_rights(client, permissions.follow_rights(names, api))
        # A read that isn't allowed gets no answer, and the permissions show it.
        is_readable = differences is not None and not any(".INFO." in right.subject for right in denied)
        if is_readable:
            found = await provision_streams(streams, expected, create=False)
            missing = [one for one in found.differences if one.unsafe]
        if create:
            to_create = permissions.creation_rights(names, api, [*missing, *late])
            denied += await permissions.find_missing_rights(client, to_create)
        absent = {one.where for one in missing if one.field == "missing"}
        existing = [one for one in expected.follow_streams if is_readable and f"stream {one}" not in absent]
        is_used = await _has_follows(settings, streams, existing)
    except NatsUnavailable as error:
        return [CheckResult("streams", str(error), ok=False)]
    may_create = create and not denied
    fix = _choose_fix(settings, may_create=may_create) + ("" if may_create else _ENDS_1_0)
    problems = missing if create else [*missing, *late]  # `serve` adds a subject when it needs it
    results = [*_describe_problems(problems, fix, ok=may_create), *_describe_denied(denied)]
    return [result if result.ok else _relate_to_follows(result, is_used=is_used) for result in results]


async def _has_follows(settings: Settings, streams: Streams, stored_in: Iterable[str]) -> bool:
    """Return whether there is a follow, or a stored request for one or on the subject of one vCenter."""
    if any(vcenter.follow for vcenter in settings.vcenters.values()):
        return True
    for stream in stored_in:
        if (await streams.read_report(stream)).state.messages:
            return True
    return False


def _relate_to_follows(result: CheckResult, *, is_used: bool) -> CheckResult:
    """Return a failure as a note unless follows are used: a bridge works without, as release 1.0 does."""
    if is_used:
        return result._replace(message=f"{result.message}. Follows and subjects for one vCenter need it.")
    message = f"{result.message}. Only follows and subjects for one vCenter need it; watches are served without."
    return result._replace(message=message, needed=False)


def _describe_streams(differences: list[Difference], fix: str, *, may_create: bool) -> list[CheckResult]:
    """Describe what watches need. `fix`: what to do about missing parts."""
    problems = _describe_problems([one for one in differences if one.unsafe], fix, ok=may_create)
    count = "1 setting differs" if len(differences) == 1 else f"{len(differences)} settings differ"
    tuned = f"; {count}, see `task-bridge provision --check`" if differences else ""
    return problems or [CheckResult("streams", f"all that watches need exist{tuned}")]


def _describe_problems(problems: list[Difference], fix: str, *, ok: bool) -> list[CheckResult]:
    """Describe differences. `fix`: what to do about missing parts; `ok`: whether `serve` does it."""
    missing = [problem.where for problem in problems if problem.field == "missing"]
    results = [
        CheckResult("streams", f"{problem}; see `task-bridge provision --check`", ok=False)
        for problem in problems
        if problem.field != "missing"
    ]
    if missing:
        results.append(CheckResult("streams", f"missing: {', '.join(missing)}; {fix}", ok=ok))
    return results


def _choose_fix(settings: Settings, *, may_create: bool) -> str:
    if may_create:
        return "`serve` will create them"
    denied = " as a user who may create them; this user may not" if settings.provision == "auto" else ""
    return f"run `task-bridge provision`{denied}"


def _describe_permissions(denied: list[Right]) -> list[CheckResult]:
    return _describe_denied(denied) or [CheckResult("permissions", "may subscribe and publish as the bridge does")]


def _describe_denied(denied: list[Right]) -> list[CheckResult]:
    return [CheckResult("permissions", f"{_list_rights(denied)}; {_ALLOW}", ok=False)] if denied else []


def _list_rights(rights: list[Right]) -> str:
    return f"not allowed: {', '.join(map(str, rights))}"


# vCenter


async def _check_vcenter(settings: VCenterSettings) -> AsyncIterator[CheckResult]:
    """Check the address and certificate, then the login, then each kind of tasks."""
    metrics = Metrics()
    http = VCenterHttp(settings, metrics)
    session = CisSession(http, settings, metrics)
    classic = VimSession(SharedVCenter(http, session.login_throttle, ResultQueue(), DiscoveryTurns()), settings)
    try:
        about = f"vCenter {settings.name}"
        yield (result := await _run_check(about, _check_address(http, settings), settings))
        if not result.ok:
            return
        yield (result := await _run_check(f"{about} login", _check_login(session, settings), settings))
        if result.ok:
            yield await _run_check(f"{about} tasks", _check_tasks(CisTasksApi(session, settings)), settings)
        if settings.vim != "off" and not session.login_throttle.is_refused:
            result = await _run_check(f"{about} classic tasks", _check_classic_tasks(classic), settings)
            yield result if result.ok or settings.vim != "auto" else _make_optional(result, settings)
            if result.ok:
                result = await _run_check(f"{about} follows", _check_history(classic), settings)
                needed = settings.follow is not None and "vim" in settings.follow.effective_apis
                yield result._replace(needed=needed)
    finally:
        await classic.close()
        await session.close()
        await http.close()


def _make_optional(result: CheckResult, settings: VCenterSettings) -> CheckResult:
    """Return a failure of classic tasks as a note: no setting requires them, and other tasks work without them."""
    off = f"BRIDGE_VCENTERS__{settings.name.upper()}__VIM=off"
    return result._replace(
        message=f"{result.message} Until then tasks like task-123 can't be watched; set {off} to refuse them.",
        needed=False,
    )


async def _run_check(about: str, check: Coroutine[Any, Any, str], settings: VCenterSettings) -> CheckResult:
    try:
        async with asyncio.timeout(max(ANSWER_S, settings.timeout_s)):
            return CheckResult(about, await check)
    except VCenterUnavailable as error:
        return CheckResult(about, _add_fix(str(error), settings), ok=False)
    except TimeoutError:
        return CheckResult(about, f"{settings.url} doesn't answer in time. It may be busy or restarting.", ok=False)


async def _check_address(http: VCenterHttp, settings: VCenterSettings) -> str:
    await http.request("session", *LOGIN_CALLS["api"].check, {})  # any answer will do
    if settings.url.startswith("http:"):
        return f"{settings.url} answers, without TLS"
    trust = "is trusted" if settings.verify_tls else "isn't checked"
    return f"{settings.url} answers, its certificate {trust}"


async def _check_login(session: CisSession, settings: VCenterSettings) -> str:
    if not await session.check():
        raise VCenterUnavailable("doesn't accept the session that it created. Is it starting?")
    return f"as {settings.username()}"


async def _check_tasks(tasks: CisTasksApi) -> str:
    """Get a task that doesn't exist. If the tasks service itself says so, it works."""
    try:
        answer = await tasks.get_task(UNKNOWN_TASK, with_result=False)
    except BadAnswer as error:
        return f"answers, but: {error}"
    if isinstance(answer, MissingTask) and answer.refusal is Refusal.ROUTER:
        fix = "Let this user read tasks." if answer.denied else "Wait until vCenter's services are up."
        raise VCenterUnavailable(f"the tasks service doesn't answer: {answer.answer.message} {fix}")
    return "the tasks service answers"


async def _check_classic_tasks(session: VimSession) -> str:
    """Read the labels of task types, which every user who can see tasks may read."""
    await fetch_labels(session)
    return "the Web Services API answers at /sdk"


async def _check_history(session: VimSession) -> str:
    """Read one task of the history, as a follow does. Raises VCenterUnavailable.

    The API reference names System.View for the collector, and nothing for reading it.
    """
    try:
        collector = await open_history(session, "<filter/>")
        try:
            await read_page(session, collector, 1)
        finally:
            with contextlib.suppress(VCenterUnavailable):
                await close_history(session, collector)
    except VCenterUnavailable as error:
        raise VCenterUnavailable(
            f"the history of classic tasks can't be read, which follows need: {error} Following needs the privilege "
            "System.View on the vCenter object, and sees the tasks of objects for which the user has a role; the role "
            "Read-only with propagation has all of that. Other watches work without."
        ) from error
    return "the history of classic tasks can be read, as follows do (privilege System.View, in the role Read-only)"


def _add_fix(message: str, settings: VCenterSettings) -> str:
    message = message.removeprefix(f"vCenter {settings.name} ")
    message, _, is_paused = message.partition(" Tried again ")
    if is_paused and message.startswith("refuses the user name or the password"):
        prefix = f"BRIDGE_VCENTERS__{settings.name.upper()}"
        return f"{message} Correct {prefix}__USERNAME and {prefix}__PASSWORD."
    return message
