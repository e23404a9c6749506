"""`load`: from the environment and `.env` to `Settings`, or to every mistake in them at once.

pydantic-settings reads, merges and validates. What is here names the variable of each mistake, and checks what
pydantic can't report together with other mistakes: it runs a validator of several fields only once each is valid.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..domain.errors import CannotStart
from ..domain.subjects import is_vcenter_name
from .deliveries import build_deliveries, delivery_variable, is_of_deliveries
from .models import LogFormat, Settings, VCenterSettings
from .nats import (
    DOT_ENV,
    NATS_VARIABLES,
    check_contradictions,
    describe_mistake,
    is_set,
    read_nats_settings,
    read_variables,
)
from .sources import VCENTER_NAME_RULE, VCENTERS, VariablesSource, vcenter_variable

_DEFAULT_VCENTER = "BRIDGE_DEFAULT_VCENTER"
_PLAIN_MESSAGES = {
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
}

VCenters = dict[str, dict[str, str]]


def load(
    environ: Mapping[str, str] | None = None,
    *,
    env_file: Path | None = None,
    need_vcenters: bool = True,
    need_deliveries: bool | None = None,
) -> Settings:
    """Return the settings of the process: its environment, over `.env` in the working directory.

    `environ` replaces both; with `env_file` it replaces the environment only. Without `need_vcenters` (for commands
    that only talk to NATS) the settings of vCenters are neither read nor refused. The same is true for deliveries,
    which are needed by default where vCenters are. Raises CannotStart (exit code 2) with one line per mistake.
    """
    if environ is None:
        environ, env_file = os.environ, env_file or DOT_ENV
    variables = read_variables(environ, env_file)
    groups = [name for name in variables if _is_of_vcenters(name) or is_of_deliveries(name)]
    bridge_variables = {name: value for name, value in variables.items() if name not in groups}
    mistakes: list[str] = []
    of_vcenters = _check_vcenter_names(variables, mistakes) if need_vcenters else {}
    source = VariablesSource(Settings, {**bridge_variables, **of_vcenters})
    tree = source()
    mistakes += source.mistakes
    # The source returns the field by its alias if the JSON is given, else by its name.
    vcenters: VCenters = tree.setdefault("vcenters", tree.pop(VCENTERS, {}))
    mistakes += _drop_unknown_keys(vcenters, keep=source.json_names)
    given = bridge_variables | {
        vcenter_variable(name, key): vcenters[name][key] for name in vcenters for key in vcenters[name]
    }
    if need_vcenters:
        mistakes += list(_check_vcenters(vcenters, given, mistakes))
    mistakes += check_contradictions(given)
    if need_vcenters if need_deliveries is None else need_deliveries:
        tree["deliveries"] = build_deliveries(variables, mistakes)
    settings = _validate(tree, given, mistakes)
    return settings.model_copy(update={"warnings": (*_warn_of_unknown(bridge_variables), *_warn_of_risks(settings))})


def read_log_format() -> LogFormat:
    """Return the format in which mistakes in the settings are reported: what is set, `auto` if that is a mistake."""
    try:
        given = read_variables(os.environ, DOT_ENV).get("BRIDGE_LOG_FORMAT", "").lower()
    except CannotStart:
        given = os.environ.get("BRIDGE_LOG_FORMAT", "").lower()
    return next((one for one in get_args(LogFormat) if one == given), "auto")


def variable_names(model: type[BaseModel]) -> dict[str, str]:
    """Return the variable of each setting of `model` by attribute. A vCenter's settings have a lower-case key."""
    aliases = {name: field.validation_alias for name, field in model.model_fields.items()}
    return {name: alias for name, alias in aliases.items() if isinstance(alias, str)}


def _is_of_vcenters(variable: str) -> bool:
    return variable == VCENTERS or variable.startswith(VCENTERS + "__")


def _check_vcenter_names(variables: Mapping[str, str], mistakes: list[str]) -> dict[str, str]:
    """Return the variables of vCenters in upper case, without those whose name is refused."""
    accepted: dict[str, str] = {}
    for name, value in variables.items():
        if not _is_of_vcenters(name):
            continue
        vcenter = name.lower().split("__")[1] if name.count("__") == 2 else ""
        if name == VCENTERS:
            accepted[name] = value
        elif not vcenter:
            mistakes.append(f"{name}: must be {VCENTERS}__<NAME>__<KEY>, without a double underscore in <NAME>")
        elif name.upper() in accepted:
            mistakes.append(f"{name.upper()}: given twice, in different case; keep one")
        elif not is_vcenter_name(vcenter):
            mistakes.append(f"{name.upper()}: {vcenter!r} can't name a vCenter: {VCENTER_NAME_RULE}")
        else:
            accepted[name.upper()] = value
    return accepted


def _drop_unknown_keys(vcenters: VCenters, keep: Collection[str]) -> Iterator[str]:
    """Drop unknown keys and report each. Also drop a vCenter without any key left, unless its name is in `keep`."""
    known = set(variable_names(VCenterSettings).values())
    for name, keys in list(vcenters.items()):
        for key in keys.keys() - known:
            hint = _suggest(key.upper(), [one.upper() for one in known])
            yield f"{vcenter_variable(name, key)}: no such setting of a vCenter{hint}"
            del keys[key]
        if not keys and name not in keep:
            del vcenters[name]


def _suggest(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _check_vcenters(vcenters: VCenters, given: Mapping[str, str], mistakes: list[str]) -> Iterator[str]:
    """Report what is missing, unless a mistake names it already."""
    mentioned = {*given, *(mistake.partition(":")[0] for mistake in mistakes)}
    if not vcenters and not mistakes:
        yield f"{VCENTERS}__<NAME>__URL: no vCenter is configured; set its URL, USERNAME and PASSWORD"
    for vcenter in vcenters:
        url = vcenter_variable(vcenter, "URL")
        if url not in mentioned:
            yield f"{url}: missing; set where this vCenter answers, like https://vcenter.example.com"
        for variable in (vcenter_variable(vcenter, key) for key in ("USERNAME", "PASSWORD")):
            if not is_set(variable, mentioned):
                yield f"{variable}: missing; set it, or {variable}_FILE"
    default = given.get(_DEFAULT_VCENTER, "").lower()
    if default and default not in vcenters:
        yield f"{_DEFAULT_VCENTER}: {default!r} is not configured (configured: {', '.join(vcenters) or 'none'})"


def _validate(tree: Mapping[str, Any], given: Mapping[str, str], mistakes: list[str]) -> Settings:
    """Return the settings. Refuse a wrong setting with one line per mistake. Raises CannotStart (exit code 2)."""
    nats = read_nats_settings(given, mistakes)
    try:
        settings = Settings(**tree, nats=nats)
    except ValidationError as error:
        # Its text and its cause show inputs, which may be secrets: keep neither.
        details = [one for one in error.errors(include_url=False) if one["type"] != "missing"]  # reported by now
        mistakes += [_describe_error(one, given) for one in details]
    if mistakes:
        raise CannotStart(*sorted(mistakes), exit_code=2) from None
    return settings


def _describe_error(error: Any, given: Mapping[str, str]) -> str:
    """Return the line of one error of pydantic, with the value unless that may be a secret or isn't as given."""
    variable = _find_variable([str(part) for part in error["loc"]])
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
    else:
        message = _PLAIN_MESSAGES.get(error["type"]) or str(error["msg"]).replace("Input should be", "must be")
    return describe_mistake(variable, message, given.get(variable, ""))


def _find_variable(location: list[str]) -> str:
    """Return the variable at pydantic's location of an error, which consists of attributes or aliases."""
    if location[0] in ("vcenters", VCENTERS):
        vcenter, key = location[1:3]
        return vcenter_variable(vcenter, variable_names(VCenterSettings).get(key, key))
    return variable_names(Settings).get(location[0], location[0])


def _warn_of_unknown(variables: Iterable[str]) -> Iterator[str]:
    known = {*variable_names(Settings).values(), *(one.variable for one in NATS_VARIABLES.values())}
    for name in variables:
        if name not in known:
            vcenter_form = VCENTERS + "".join(name.partition("__")[1:])
            yield f"{name}: no such setting, ignored{_suggest(name, [*known, vcenter_form])}"


def _warn_of_risks(settings: Settings) -> Iterator[str]:
    yield from _warn_of_http(settings)
    for name, vcenter in settings.vcenters.items():
        if vcenter.url.startswith("http:"):
            variable = vcenter_variable(name, "URL")
            yield f"{variable}: http:// sends the password unencrypted; use https:// unless this is a simulator"
        elif not vcenter.verify_tls:
            variable = vcenter_variable(name, "VERIFY_TLS")
            yield f"{variable}: false accepts any certificate, so anyone in between can read the password"
    for name, delivery in settings.deliveries.items():
        if delivery.url.startswith("http:"):
            yield f"{delivery_variable(name, 'URL')}: http:// sends events unencrypted; use https://"
        elif not delivery.verify_tls:
            variable = delivery_variable(name, "VERIFY_TLS")
            yield f"{variable}: false accepts any certificate, so anyone in between can read the events"


def _warn_of_http(settings: Settings) -> Iterator[str]:
    if settings.http_tokens_file is not None and settings.http_listen is None:
        yield "BRIDGE_HTTP_TOKENS_FILE: is of no use while BRIDGE_HTTP_LISTEN is off"
    if settings.http_insecure_tokens and settings.http_tls_cert_file is None:
        yield "BRIDGE_HTTP_INSECURE_TOKENS: tokens are accepted unencrypted, so everybody between can read and use them"
