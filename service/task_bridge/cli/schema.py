"""The command that prints the schemas: `schema`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from .. import schemas
from ..domain.errors import CannotStart
from ..domain.subjects import SubjectNames
from ..settings import load
from .ending import give_up


class Document(StrEnum):
    """What there is, and what it is of."""

    request = "request"
    reply = "reply"
    event = "event"
    asyncapi = "asyncapi"


_ABOUT = {
    Document.request: "JSON Schema of what may be asked",
    Document.reply: "JSON Schema of the API's answers",
    Document.event: "JSON Schema of what lies in the events stream",
    Document.asyncapi: "AsyncAPI 3.0 of every subject, with the configured prefix",
}


def schema(
    which: Annotated[
        Document | None, typer.Argument(metavar="[request|reply|event|asyncapi]", help="Without it they are named.")
    ] = None,
) -> None:
    """Print the JSON Schemas of requests, replies and events, or the AsyncAPI document of every subject."""
    if which is None:
        for name, about in _ABOUT.items():
            typer.echo(f"{name:<10}{about}")
    elif which is Document.asyncapi:
        typer.echo(_asyncapi(), nl=False)
    else:
        typer.echo(schemas.read_text(which), nl=False)


def _asyncapi() -> str:
    from ..schemas.asyncapi import build_document  # noqa: PLC0415

    try:
        settings = load(need_vcenters=False)
    except CannotStart as error:
        give_up(error)
    return schemas.format_document(build_document(SubjectNames(settings.subject_prefix)))
