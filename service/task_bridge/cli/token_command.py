"""The command `token`, which makes a token of the API over HTTP."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="Who uses the token; the log has this name.")]
Verbs = Annotated[str, typer.Option(help="What it may do: verbs, comma-separated, or * for all.", metavar="VERB,…")]
VCenters = Annotated[str, typer.Option(help="For which vCenters: names, or * for all.", metavar="NAME,…")]


def token(name: Name, verbs: Verbs, vcenters: VCenters = "*") -> None:
    """Print a new token, and its line for the file that BRIDGE_HTTP_TOKENS_FILE names.

    The token is on the first line of standard output, the line on the second. Nothing keeps the token: the file has
    its hash only.
    """
    from ..domain.access import format_token_line, is_token_name, parse_vcenters, parse_verbs  # noqa: PLC0415

    if not is_token_name(name):
        raise typer.BadParameter("use up to 64 letters, digits and . _ @ -", param_hint="NAME")
    try:
        permitted_verbs = parse_verbs(verbs)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--verbs") from None
    try:
        permitted_vcenters = parse_vcenters(vcenters)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--vcenters") from None
    secret = secrets.token_urlsafe(32)
    typer.echo("The token, which is shown only now, and its line for BRIDGE_HTTP_TOKENS_FILE:", err=True)
    typer.echo(secret)
    typer.echo(format_token_line(name, secret.encode(), permitted_verbs, permitted_vcenters))
