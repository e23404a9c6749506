"""The options that every command has that talks to a bridge: which NATS, also as a context of the nats CLI."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import typer
from typer.core import TyperCommand

_VARIABLES = {
    "url": "BRIDGE_NATS_URL",
    "user": "BRIDGE_NATS_USER",
    "password": "BRIDGE_NATS_PASSWORD",
    "token": "BRIDGE_NATS_TOKEN",
    "creds": "BRIDGE_NATS_CREDS_FILE",
    "nkey": "BRIDGE_NATS_NKEY_SEED_FILE",
    "cert": "BRIDGE_NATS_TLS_CERT_FILE",
    "key": "BRIDGE_NATS_TLS_KEY_FILE",
    "ca": "BRIDGE_NATS_TLS_CA_FILE",
    "jetstream_domain": "BRIDGE_NATS_JS_DOMAIN",
    "inbox_prefix": "BRIDGE_NATS_INBOX_PREFIX",
}
"""The keys of a context, and the settings that mean the same."""
_FILES = ("creds", "nkey", "cert", "key", "ca")
_UNSUPPORTED = {
    "nsc": "name a credentials file (`creds`) instead; `nsc generate creds` writes one",
    "user_jwt": "name a credentials file (`creds`) instead",
    "socks_proxy": "the commands speak to NATS directly",
    "jetstream_api_prefix": "name the domain (`jetstream_domain`) instead",
}
_ALL_VARIABLES = (*_VARIABLES.values(), "BRIDGE_NATS_PASSWORD_FILE", "BRIDGE_NATS_TOKEN_FILE")


def choose_url(url: str | None) -> None:
    """Use this NATS instead of the one in the settings."""
    if url:
        os.environ["BRIDGE_NATS_URL"] = url


def choose_context(name: str | None) -> None:
    """Use a context of the nats CLI instead of all settings of NATS, those in `.env` too."""
    if name is None:
        return
    directory = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nats"
    try:
        settings = read_context(directory, name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    # An empty variable counts as not set, and wins over `.env`.
    os.environ.update({variable: settings.get(variable, "") for variable in _ALL_VARIABLES})


def read_context(directory: Path, name: str) -> dict[str, str]:
    """Return the context as settings, by variable; `-` is the selected one. Raises ValueError."""
    if name == "-":
        name = _read_selected(directory)
    file = directory / "context" / f"{name}.json"
    if not name or "/" in name or os.sep in name or ".." in name or not file.is_file():
        known = ", ".join(sorted(path.stem for path in directory.glob("context/*.json")))
        raise ValueError(f"there is no context {name!r} in {directory / 'context'} (there: {known or 'none'})")
    try:
        context = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if not isinstance(context, dict):
        raise ValueError(f"{file} can't be read: it isn't a JSON object")  # noqa: TRY004 - as for other contents
    return _translate(context, file)


def _read_selected(directory: Path) -> str:
    try:
        return (directory / "context.txt").read_text("utf-8-sig").strip()
    except OSError as error:
        raise ValueError("no context is selected; `nats context select` selects one") from error


def _translate(context: dict[str, Any], file: Path) -> dict[str, str]:
    given = {key: str(value) for key, value in context.items() if isinstance(value, str | int) and value}
    for key, cure in _UNSUPPORTED.items():
        if key in given:
            raise ValueError(f"{file} has {key!r}, which task-bridge can't use; {cure}")
    fields = {key: value for key, value in given.items() if key in _VARIABLES}
    urls = [split_userinfo(url.strip()) for url in fields.pop("url", "nats://127.0.0.1:4222").split(",")]
    for _, userinfo in urls:
        fields = userinfo | fields
    for key in _FILES:
        if key in fields:
            fields[key] = os.path.expanduser(os.path.expandvars(fields[key]))
    # As the nats CLI does: the first of these that is there is the login.
    login = next((key for key in ("user", "creds", "nkey", "token") if key in fields), None)
    others = {"user", "creds", "nkey", "token"} - {login}
    if login != "user":
        others.add("password")
    kept = {_VARIABLES[key]: value for key, value in fields.items() if key not in others}
    return kept | {"BRIDGE_NATS_URL": ",".join(url for url, _ in urls)}


def split_userinfo(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without a login, and the login that it has: a user with a password, or a token."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    user, colon, password = userinfo.partition(":")
    login = {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}
    return urlunsplit(parts._replace(netloc=host)), login


def _declare(
    nats_url: str | None = typer.Option(
        None, "--nats-url", metavar="URL", help="The NATS server. Default: BRIDGE_NATS_URL.", callback=choose_url
    ),
    context: str | None = typer.Option(
        None,
        "--context",
        metavar="NAME",
        help="A context of the nats CLI instead of the BRIDGE_NATS_* settings; - is the selected one.",
        callback=choose_context,
        is_eager=True,
    ),
) -> None:
    """Declare the options that `AskingCommand` adds."""


class AskingCommand(TyperCommand):
    """A command that talks to a bridge. Its options choose the NATS; its function doesn't see them."""

    def __init__(self, *arguments: Any, params: list[Any] | None = None, **more: Any) -> None:
        super().__init__(*arguments, params=[*(params or []), *_create_options()], **more)


def _create_options() -> list[Any]:
    alone = typer.Typer(add_completion=False)
    alone.command()(_declare)
    options = [option for option in typer.main.get_command(alone).params if option.name in ("nats_url", "context")]
    for option in options:
        option.expose_value = False
    return options
