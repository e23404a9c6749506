"""The command `schema`, which prints the schemas."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from .. import schemas
from ..domain.errors import CannotStart
from ..domain.subjects import SubjectNames
from ..settings.nats import load_client_settings
from .exit_codes import exit_with_error


class Document(StrEnum):
    """The documents that can be printed."""

    request = "request"
    reply = "reply"
    event = "event"
    follow = "follow"
    undelivered = "undelivered"
    asyncapi = "asyncapi"
    openapi = "openapi"


_DESCRIPTIONS = {
    Document.request: "JSON Schema of the requests",
    Document.reply: "JSON Schema of the replies",
    Document.event: "JSON Schema of the events of watches",
    Document.follow: "JSON Schema of the events of follows",
    Document.undelivered: "JSON Schema of the reports of events that were not delivered over HTTP",
    Document.asyncapi: "AsyncAPI 3.0 of every subject, with the configured prefix",
    Document.openapi: "OpenAPI 3.1 of the API over HTTP",
}


def schema(
    document: Annotated[
        Document | None,
        typer.Argument(metavar=f"[{'|'.join(Document)}]", help="The document. Default: list them."),
    ] = None,
) -> None:
    """Print a JSON Schema of requests, replies or events, or the AsyncAPI or OpenAPI document."""
    if document is None:
        for name, description in _DESCRIPTIONS.items():
            typer.echo(f"{name:<13}{description}")
    elif document is Document.asyncapi:
        _print_asyncapi()
    elif document is Document.openapi:
        from ..schemas.openapi import build_openapi  # noqa: PLC0415

        typer.echo(schemas.format_document(build_openapi()), nl=False)
    else:
        typer.echo(schemas.read_text(document), nl=False)


def _print_asyncapi() -> None:
    from ..schemas.asyncapi import build_document  # noqa: PLC0415

    try:
        settings = load_client_settings()
    except CannotStart as error:
        exit_with_error(error)
    typer.echo(schemas.format_document(build_document(SubjectNames(settings.subject_prefix))), nl=False)
