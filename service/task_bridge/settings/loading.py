"""From the environment and `.env` to `Settings`, or to all that is wrong with them at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from ..domain.errors import CannotStart
from .models import NatsSettings, Settings, VCenterSettings
from .variables import VCENTERS, Known, Variables, sort_out, vcenter_variable

_DOT_ENV = Path(".env")
_SECRETS = ("USERNAME", "PASSWORD", "TOKEN", "SEED", "CREDS", "KEY")
_PLAIN = {
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
}


def load(
    environ: Mapping[str, str] | None = None, *, env_file: Path | None = None, need_vcenters: bool = True
) -> Settings:
    """The settings of the process, `.env` of the working directory below its environment.

    `environ` instead of the process's is taken alone, or over `env_file`. Who only talks to NATS doesn't
    `need_vcenters`: then nothing about vCenters is read, nor refused. Raises CannotStart (exit code 2) with one
    line a mistake.
    """
    if environ is None:
        environ, env_file = os.environ, env_file or _DOT_ENV
    found = sort_out({**_dot_env(env_file), **environ}, _known(), need_vcenters=need_vcenters)
    try:
        settings = Settings(**_tree(found), warnings=tuple(found.warnings))
    except ValidationError as error:
        # Its own text shows inputs, and they may be secrets: it is neither told nor kept as the cause.
        mistakes = [*found.mistakes, *_told(error, found.values)]
    else:
        mistakes = found.mistakes
    if mistakes:
        raise CannotStart(*sorted(mistakes), exit_code=2) from None
    return settings.model_copy(update={"warnings": (*settings.warnings, *_risks(settings))})


def _dot_env(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        given = DotEnvSettingsSource(
            Settings, env_file=path, env_file_encoding="utf-8-sig", case_sensitive=True
        ).env_vars
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"{path}: can't be read: {error}", exit_code=2) from None
    return {name: value for name, value in given.items() if value is not None}


def variable_names(model: type[BaseModel]) -> dict[str, str]:
    """The settings of `model` by attribute: the variable of each, of a vCenter its key in lower case."""
    aliases = {name: field.validation_alias for name, field in model.model_fields.items()}
    return {name: alias for name, alias in aliases.items() if isinstance(alias, str)}


def _known() -> Known:
    names = {*variable_names(Settings).values(), *variable_names(NatsSettings).values()}
    return Known(names, {key.upper() for key in variable_names(VCenterSettings).values()})


def _tree(found: Variables) -> dict[str, Any]:
    """As pydantic wants it: NATS as a group of its own, the variables of a vCenter under its name."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in found.values.items()}
    nats = variable_names(NatsSettings).values()
    return {**source(), "nats": {name: found.values[name] for name in nats if name in found.values}}


def _told(error: ValidationError, given: Mapping[str, str]) -> Iterator[str]:
    for one in error.errors(include_url=False):
        if one["type"] == "missing":
            continue  # told by name already
        variable = _variable([str(part) for part in one["loc"]])
        yield f"{variable}: {_sentence(one)}{_shown(variable, given)}"


def _variable(place: list[str]) -> str:
    """The variable of an error's place, which pydantic tells by attribute or by alias."""
    if place[0] in ("vcenters", VCENTERS):
        vcenter, key = place[1:3]
        return vcenter_variable(vcenter, variable_names(VCenterSettings).get(key, key))
    if place[0] == "nats":
        return variable_names(NatsSettings).get(place[1], place[1])
    return variable_names(Settings).get(place[0], place[0])


def _sentence(one: Any) -> str:
    if one["type"] == "value_error":
        return str(one["ctx"]["error"])
    return _PLAIN.get(one["type"]) or str(one["msg"]).replace("Input should be", "must be")


def _shown(variable: str, given: Mapping[str, str]) -> str:
    """The value as it was given, unless it may be a secret, or one that was meant for another variable."""
    value = given.get(variable, "")
    if not value or "@" in value or any(word in variable for word in _SECRETS):
        return ""
    return f" (got {value[:100]!r})"


def _risks(settings: Settings) -> Iterator[str]:
    for name, vcenter in settings.vcenters.items():
        if vcenter.url.startswith("http:"):
            variable = vcenter_variable(name, "URL")
            yield f"{variable}: http:// sends the password unencrypted; use https:// but for a simulator"
        elif not vcenter.verify_tls:
            variable = vcenter_variable(name, "VERIFY_TLS")
            yield f"{variable}: false accepts any certificate, so anybody in between gets the password"
