"""Requests to follow tasks, from the stream and over the API: both are admitted here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import structlog
from nats.aio.msg import Msg

from ..domain.errors import Problem, invalid_request
from ..domain.follows.order import CONFIGURED_FOLLOW
from ..domain.follows.request import FollowRequest, build_follow
from ..domain.requests import parse_request, parse_trace_context
from .follow_store import FollowAdmission
from .request_consumer import RequestContext, check_headers, resolve_known

log = structlog.get_logger(__name__)


async def admit_follow_request(context: RequestContext, stalled_after_s: float, message: Msg) -> None:
    """Start the follow that a stored request asks for. Raises Refused, UnknownVCenter or NatsUnavailable."""
    check_headers(message.headers)
    request = parse_request(FollowRequest, message.data, context.names.parse_named_vcenter(message.subject))
    vcenter = resolve_known(context, request.vcenter)
    stored_at, sequence = message.metadata.timestamp.timestamp(), message.metadata.sequence.stream
    follow_id = f"{int(stored_at * 1000)}-{sequence}"
    admission = await _admit(context, request, vcenter, stored_at, follow_id, stalled_after_s, message.headers)
    log.info("follow_request", outcome=admission.outcome, **admission.follow.log_keys, by=None)


async def admit_follow(
    context: RequestContext, stalled_after_s: float, request: FollowRequest, headers: Mapping[str, str] | None
) -> FollowAdmission:
    """Start the follow that a requester over the API asks for. Raises Refused or NatsUnavailable."""
    vcenter, now = context.routes.resolve_configured(request.vcenter), context.clock()
    follow_id = f"{int(now * 1000)}-a{secrets.token_hex(6)}"
    return await _admit(context, request, vcenter, now, follow_id, stalled_after_s, headers)


async def _admit(
    context: RequestContext,
    request: FollowRequest,
    vcenter: str,
    requested_at: float,
    follow_id: str,
    stalled_after_s: float,
    headers: Mapping[str, str] | None,
) -> FollowAdmission:
    if "vim" in request.effective_apis and vcenter in context.routes.without_vim:
        setting = f"BRIDGE_VCENTERS__{vcenter.upper()}__VIM"
        problem = f"classic tasks of {vcenter} can't be followed: {setting} is off"
        raise invalid_request(f"The request is refused: {problem}.", Problem("apis", problem))
    follow = build_follow(
        request,
        vcenter,
        requested_at,
        follow_id,
        stalled_after_s=stalled_after_s,
        trace=parse_trace_context(headers),
    )
    return await context.follows.admit(follow)


async def follow_as_configured(
    context: RequestContext, configured: Mapping[str, FollowRequest | None], stalled_after_s: float
) -> None:
    """Start the follow `config` of each vCenter whose settings have one. Raises NatsUnavailable.

    One that the settings no longer have goes on, since another replica may have other settings. The log says so.
    """
    for vcenter, request in configured.items():
        if request is not None:
            request = request.model_copy(update={"vcenter": vcenter})
            admission = await admit_follow(context, stalled_after_s, request, None)
            log.info("follow_request", outcome=admission.outcome, **admission.follow.log_keys, by=None)
        elif await context.follows.read(vcenter, CONFIGURED_FOLLOW) is not None:
            cure = f"task-bridge unfollow {CONFIGURED_FOLLOW} --vcenter {vcenter}"
            log.warning("follow_not_configured", vcenter=vcenter, follow=CONFIGURED_FOLLOW, cure=cure)
