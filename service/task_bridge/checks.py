"""Everything that the bridge depends on, asked once: what is, or what is wrong and its cure.

Nothing is created and no event is published; a password is tried once, since SSO counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from nats.aio.client import Client

from . import __version__
from .domain.errors import CannotStart, NatsUnavailable, VCenterUnavailable
from .domain.subjects import SubjectNames
from .jetstream import permissions
from .jetstream.connection import Connection, server_version
from .jetstream.permissions import Right
from .jetstream.provision import Difference, JetStreamConfig, check_version, expected_config, provision
from .jetstream.streams import Streams
from .metrics import Metrics
from .settings import Settings, VCenterSettings
from .vcenter.cis.api import BadAnswer, CisTasksApi, MissingTask
from .vcenter.cis.renderings import LOGIN_CALLS
from .vcenter.cis.session import CisSession
from .vcenter.health import VCenterHealthTracker
from .vcenter.http import VCenterHttp
from .vcenter.shared import ResultQueue, SharedVCenter
from .vcenter.vim.api import fetch_labels
from .vcenter.vim.session import VimSession as VimSession

REACH_S, ANSWER_S = 5.0, 20.0
OUT_OF_REACH = 4
_NO_TASK = "00000000-0000-0000-0000-000000000000:com.vmware.cis"


class CheckResult(NamedTuple):
    """About one thing: that it is well, or (not `ok`) what is wrong and what to do. Without `needed` the bridge can
    do its work all the same.
    """

    about: str
    said: str
    ok: bool = True
    needed: bool = True


@asynccontextmanager
async def connect_or_explain(settings: Settings) -> AsyncIterator[Client]:
    """A connection to NATS. Raises CannotStart when it can't be had soon (exit code 4), or is refused."""
    connection = Connection(settings.nats, f"task-bridge {__version__}")
    try:
        try:
            async with asyncio.timeout(REACH_S):
                client = await connection.open()
        except TimeoutError:
            urls, why = ", ".join(settings.nats.urls), connection.reason or "no answer in time"
            told = f"NATS at {urls} is out of reach ({why}). Start it, or set BRIDGE_NATS_URL to where it is."
            raise CannotStart(told, exit_code=OUT_OF_REACH) from None
        yield client
    finally:
        await connection.close()


def expected_jetstream(settings: Settings) -> JetStreamConfig:
    """The streams, consumers and bucket by these settings."""
    return expected_config(
        SubjectNames(settings.subject_prefix),
        replicas=settings.stream_replicas,
        ack_wait_s=settings.ack_wait_s,
        events_max_age_s=settings.events_max_age_s,
    )


async def run_checks(settings: Settings) -> AsyncIterator[CheckResult]:
    """About everything, one after the other; what needs something that isn't there is left out."""
    try:
        async with connect_or_explain(settings) as client:
            async for finding in _nats(settings, client):
                yield finding
    except CannotStart as error:
        yield CheckResult("NATS", str(error), ok=False)
    for vcenter in settings.vcenters.values():
        async for finding in _vcenter(vcenter):
            yield finding


# NATS


async def _nats(settings: Settings, client: Client) -> AsyncIterator[CheckResult]:
    where = client.connected_url.netloc if client.connected_url else ", ".join(settings.nats.urls)
    yield CheckResult("NATS", f"connected to {where}, login: {settings.nats.login}")
    version = server_version(client)
    try:
        check_version(version)
        yield CheckResult("NATS version", ".".join(map(str, version)))
    except CannotStart as error:
        yield CheckResult("NATS version", str(error), ok=False)
    streams = Streams(client, settings.nats.js_domain)
    try:
        differences = await provision(streams, expected_jetstream(settings), create=False)
    except NatsUnavailable as error:
        yield CheckResult("JetStream", str(error), ok=False)
        differences = None
    else:
        yield CheckResult("JetStream", "answers")
    for finding in await _streams_and_permissions(settings, streams, differences):
        yield finding


async def _streams_and_permissions(
    settings: Settings, streams: Streams, differences: list[Difference] | None
) -> list[CheckResult]:
    """Without `differences` nothing is known of the streams."""
    client, api, names = streams.connection, streams.prefix, SubjectNames(settings.subject_prefix)
    missing = [difference for difference in differences or () if difference.field == "missing"]
    to_create = permissions.creation_rights(names, api, missing) if settings.provision == "auto" else []
    needed = permissions.required_rights(names, api, client.new_inbox()) + to_create
    dispensable = permissions.reply_rights() + permissions.board_rights(names, api)
    try:
        lacking = await permissions.find_missing_rights(client, needed + dispensable)
    except NatsUnavailable as error:
        return [CheckResult("permissions", str(error), ok=False)]
    may_create = settings.provision == "auto" and not set(to_create) & set(lacking)
    found = [] if differences is None else _streams(differences, settings.provision, may_create=may_create)
    denied = [right for right in lacking if right in needed]
    return [*found, *_permissions(denied, [right for right in lacking if right in dispensable])]


def _streams(differences: list[Difference], how: str, *, may_create: bool) -> list[CheckResult]:
    missing = [difference.where for difference in differences if difference.field == "missing"]
    found = [
        CheckResult("streams", f"{difference}. See `task-bridge provision --check`.", ok=False)
        for difference in differences
        if difference.unsafe and difference.field != "missing"
    ]
    if missing:
        cure = "`serve` will create them" if may_create else "run `task-bridge provision`"
        if how == "auto" and not may_create:
            cure += " as a user who may create them, for this one may not"
        found.append(CheckResult("streams", f"not there yet: {', '.join(missing)}; {cure}", ok=may_create))
    if not found:
        tuned = f"; {len(differences)} settings differ, see `task-bridge provision --check`" if differences else ""
        found.append(CheckResult("streams", f"all there{tuned}"))
    return found


def _permissions(denied: list[Right], dispensable: list[Right]) -> list[CheckResult]:
    cure = "let the bridge's NATS user do it, as deploy/nats does"
    if denied:
        return [CheckResult("permissions", f"not allowed: {_listed(denied)}; {cure}", ok=False)]
    found = [CheckResult("permissions", "may subscribe and publish as the bridge does")]
    if dispensable:
        told = f"not allowed: {_listed(dispensable)}; answers (unless allow_responses) or the board need it; {cure}"
        found.append(CheckResult("permissions", told, ok=False, needed=False))
    return found


def _listed(rights: list[Right]) -> str:
    return ", ".join(map(str, rights))


# vCenter


async def _vcenter(settings: VCenterSettings) -> AsyncIterator[CheckResult]:
    """Its address and certificate; then the login and the tasks, of each kind up to what fails."""
    metrics = Metrics()
    http = VCenterHttp(settings, metrics)
    session = CisSession(http, settings, metrics)
    classic = VimSession(
        SharedVCenter(http, session.login_throttle, VCenterHealthTracker(settings.name), ResultQueue()), settings
    )
    try:
        about = f"vCenter {settings.name}"
        yield (finding := await _found(about, _address(http, settings), settings))
        if not finding.ok:
            return
        yield (finding := await _found(f"{about} login", _login(session, settings), settings))
        if finding.ok:
            yield await _found(f"{about} tasks", _tasks(CisTasksApi(session, settings)), settings)
        if settings.vim != "off" and not session.login_throttle.is_refused:
            finding = await _found(f"{about} classic tasks", _classic_tasks(classic), settings)
            yield finding if finding.ok or settings.vim != "auto" else _dispensable(finding, settings)
    finally:
        await classic.close()
        await session.close()
        await http.close()


def _dispensable(finding: CheckResult, settings: VCenterSettings) -> CheckResult:
    """Nobody asked for classic tasks by a setting, and all others can be watched without."""
    off = f"BRIDGE_VCENTERS__{settings.name.upper()}__VIM=off"
    return finding._replace(
        said=f"{finding.said} Until then tasks like task-123 can't be watched; {off} refuses them.", needed=False
    )


def _tls(settings: VCenterSettings) -> str:
    if settings.url.startswith("http:"):
        return "without TLS"
    return "its certificate is trusted" if settings.verify_tls else "its certificate isn't looked at"


async def _found(about: str, asking: Coroutine[Any, Any, str], settings: VCenterSettings) -> CheckResult:
    try:
        async with asyncio.timeout(ANSWER_S):
            return CheckResult(about, await asking)
    except VCenterUnavailable as error:
        return CheckResult(about, _with_cure(str(error), settings), ok=False)
    except TimeoutError:
        return CheckResult(about, f"{settings.url} doesn't answer in time. It may be busy or restarting.", ok=False)


async def _address(http: VCenterHttp, settings: VCenterSettings) -> str:
    await http.request("session", *LOGIN_CALLS["api"].check, {})  # whatever it answers to a stranger
    return f"{settings.url} answers, {_tls(settings)}"


async def _login(session: CisSession, settings: VCenterSettings) -> str:
    if not await session.check():
        raise VCenterUnavailable("doesn't answer for the session that it gave. Is it starting?")
    return f"as {settings.username()}"


async def _tasks(tasks: CisTasksApi) -> str:
    """Asks for a task that there is not: a service that says so itself is there."""
    try:
        answer = await tasks.get_task(_NO_TASK, with_result=False)
    except BadAnswer as error:
        return f"answers, though: {error}"
    if isinstance(answer, MissingTask) and not answer.well_formed:
        cure = "Let this user read tasks." if answer.denied else "Wait until vCenter's services are up."
        raise VCenterUnavailable(f"the tasks service doesn't answer: {answer.answer.message} {cure}")
    return "the tasks service answers"


async def _classic_tasks(session: VimSession) -> str:
    """Asks for the labels of what tasks do, which whoever may see tasks may read."""
    await fetch_labels(session)
    return "the Web Services API answers at /sdk"


def _with_cure(told: str, settings: VCenterSettings) -> str:
    told = told.removeprefix(f"vCenter {settings.name} ")
    if not told.startswith("refuses the user name or the password"):
        return told
    prefix = f"BRIDGE_VCENTERS__{settings.name.upper()}"
    return f"{told.partition(' Tried again')[0]} Set {prefix}__USERNAME and {prefix}__PASSWORD right."
