"""Requests to follow the tasks of a vCenter, and the follow that comes into force. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from ..durations import parse_duration, parse_time
from ..managed_objects import find_object_type
from ..requests import Duration, LabelKey, LabelValue, StrictRequest, check_duration, check_timeout
from ..subjects import is_follow_name
from .order import Follow, FollowEntity, is_cis_service

Api = Literal["vim", "cis"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Texts = Annotated[list[Text], Field(max_length=64, default_factory=list)]


def _check_name(name: str) -> str:
    if not is_follow_name(name):
        raise ValueError("must be at most 63 characters: words of a-z and 0-9, joined by single hyphens")
    return name


def _check_since(since: str) -> str:
    if since != "now" and parse_time(since) is None:
        try:
            parse_duration(since)
        except ValueError as error:
            message = 'must be "now", a time like "2026-11-24T22:40:55Z", or a duration ago like "1h"'
            raise ValueError(message) from error
    return since


def _check_patterns(patterns: list[str]) -> list[str]:
    if any(pattern in ("", "!") for pattern in patterns):
        raise ValueError("must not contain an empty name")
    return patterns


def _check_entity(entity_id: str) -> str:
    if find_object_type(entity_id) is None:
        raise ValueError('must be the id of a managed object, like "group-v3", "vm-98", "domain-c9" or "host-12"')
    return entity_id


class EntityRequest(StrictRequest):
    """A managed object by its id, with all that is below it if `recursive`."""

    id: Annotated[str, AfterValidator(_check_entity)]
    recursive: bool = False


class FollowNameRequest(StrictRequest):
    """A request that names a follow: `unfollow`."""

    name: Annotated[str, AfterValidator(_check_name)]
    vcenter: str | None = None


class FollowsRequest(StrictRequest):
    """A request for the follows of a vCenter, or of all."""

    vcenter: str | None = None


class FollowRequest(FollowNameRequest):
    """A request to watch every task of a vCenter that matches, from a time on."""

    apis: list[Api] | None = None
    services: Texts
    operations: Annotated[Texts, AfterValidator(_check_patterns)]
    users: Texts
    entity: EntityRequest | None = None
    top_level_only: bool = False
    since: Annotated[str, AfterValidator(_check_since)] = "now"
    events: Literal["all", "endings"] = "all"
    timeout: Annotated[Duration | None, BeforeValidator(check_duration), AfterValidator(check_timeout)] = None
    stalled_after: Annotated[Duration | None, BeforeValidator(check_duration)] = None
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16, default_factory=dict)]

    @model_validator(mode="after")
    def _check_apis(self) -> Self:
        if self.apis is not None and (not self.apis or len(set(self.apis)) != len(self.apis)):
            raise ValueError("apis: must name vim, cis or both, each once")
        if "cis" in self.effective_apis and not self.cis_services:
            raise ValueError(
                "services: must name at least one CIS service, like com.vmware.esx.settings.clusters.software: "
                "vCenter lists CIS tasks only of named services"
            )
        return self

    @property
    def effective_apis(self) -> tuple[Api, ...]:
        """The APIs as requested; by default `vim`, and `cis` too if a CIS service is named."""
        if self.apis is not None:
            return tuple(sorted(self.apis, reverse=True))
        return ("vim", "cis") if any(map(is_cis_service, self.services)) else ("vim",)

    @property
    def cis_services(self) -> list[str]:
        """The named services of the CIS tasks service."""
        return list(filter(is_cis_service, self.services))


def build_follow(
    request: FollowRequest,
    vcenter: str,
    requested_at: float,
    follow_id: str,
    *,
    stalled_after_s: float,
    trace: tuple[str | None, str | None] = (None, None),
) -> Follow:
    """Return the follow that a request asks for. `requested_at`: by nats-server's clock, in Unix seconds."""
    return Follow(
        id=follow_id,
        vcenter=vcenter,
        name=request.name,
        requested_at=requested_at,
        apis=request.effective_apis,
        services=_sort(request.services),
        operations=_sort(request.operations),
        users=_sort(request.users),
        entity=FollowEntity(request.entity.id, request.entity.recursive) if request.entity else None,
        top_level_only=request.top_level_only,
        since=request.since,
        events=request.events,
        timeout_s=request.timeout,
        stalled_after_s=stalled_after_s if request.stalled_after is None else request.stalled_after,
        labels=request.labels,
        traceparent=trace[0],
        tracestate=trace[1],
    )


def _sort(texts: Iterable[str]) -> tuple[str, ...]:
    """Return each text once, in order: two requests that mean the same are the same."""
    return tuple(sorted(set(texts)))
