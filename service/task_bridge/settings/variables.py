"""Environment variables before they are values: where they come from, how they are named, which contradict. Pure.

What is wrong with names is told here and what is wrong with values by `knobs`, so that one start tells it all.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..domain.subjects import is_vcenter_name

PREFIX = "BRIDGE_"
VCENTERS = "BRIDGE_VCENTERS"
DEFAULT_VCENTER = "BRIDGE_DEFAULT_VCENTER"

_NAME_RULE = "it must be letters and digits, in words joined by single underscores, at most 63 characters"
_TOGETHER = (
    ("BRIDGE_NATS_USER", "BRIDGE_NATS_PASSWORD"),
    ("BRIDGE_NATS_TLS_CERT_FILE", "BRIDGE_NATS_TLS_KEY_FILE"),
)
_VCENTER_SECRETS = ("PASSWORD", "PASSWORD_FILE")
_NATS_LOGINS = ("BRIDGE_NATS_CREDS_FILE", "BRIDGE_NATS_NKEY_SEED_FILE", "BRIDGE_NATS_USER", "BRIDGE_NATS_TOKEN")


class Known(NamedTuple):
    """What may be set: whole names, and the keys of one vCenter (upper case)."""

    names: Collection[str]
    vcenter_keys: Collection[str]


class Variables(NamedTuple):
    """`values`: what is set, each vCenter's as `BRIDGE_VCENTERS__LAB__URL`; what to tell about the names; and the
    vCenters that are `named` in the JSON, maybe without a word more.
    """

    values: dict[str, str]
    mistakes: list[str]
    warnings: list[str]
    named: list[str]

    @property
    def vcenters(self) -> list[str]:
        """The names of the vCenters that are to be followed, lower-cased, in their order."""
        spoken_of = [_split(name)[0] for name in self.values if name.startswith(VCENTERS + "__")]
        return list(dict.fromkeys([*spoken_of, *self.named]))


def vcenter_variable(vcenter: str, key: str) -> str:
    """The environment variable of one key of a vCenter."""
    return f"{VCENTERS}__{vcenter}__{key}".upper()


def sort_out(environ: Mapping[str, str], known: Known, *, need_vcenters: bool) -> Variables:
    """The bridge's variables out of all. Empty ones count as not set, as compose files write them.

    Without `need_vcenters` nothing about a vCenter is read: who only talks to NATS needs none.
    """
    found = Variables({}, [], [], [])
    given = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value}
    for name, value in given.items():
        if name != VCENTERS and not name.startswith(VCENTERS + "__"):
            _take(found, known, name, value)
    if need_vcenters:
        from_json, spelled_out = _from_json(given.get(VCENTERS), found), _spelled_out(given, found.mistakes)
        found.mistakes.extend(_secrets_twice(from_json, spelled_out))
        _take_vcenters(found, known, from_json | spelled_out)
        _check_vcenters(found)
    found.mistakes.extend(_contradictions(found.values))
    return found


def _take(found: Variables, known: Known, name: str, value: str) -> None:
    if name in known.names:
        found.values[name] = value
        return
    vcenter_form = VCENTERS + "".join(name.partition("__")[1:])
    hint = _meant(name, [*known.names, vcenter_form])
    found.warnings.append(f"{name}: no such setting, ignored{hint}")


def _take_vcenters(found: Variables, known: Known, given: Mapping[str, str]) -> None:
    for variable, value in given.items():
        vcenter, key = _split(variable)
        if not is_vcenter_name(vcenter):
            found.mistakes.append(f"{variable}: {vcenter!r} can't name a vCenter: {_NAME_RULE}")
        elif key not in known.vcenter_keys:
            found.mistakes.append(f"{variable}: no such setting of a vCenter{_meant(key, known.vcenter_keys)}")
        else:
            found.values[variable] = value


def _split(variable: str) -> tuple[str, str]:
    _, vcenter, key = variable.split("__", 2)
    return vcenter.lower(), key


def _meant(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _spelled_out(given: Mapping[str, str], mistakes: list[str]) -> dict[str, str]:
    normal: dict[str, str] = {}
    for name, value in given.items():
        if not name.startswith(VCENTERS + "__"):
            continue
        if name.count("__") != 2:
            mistakes.append(f"{name}: must be {VCENTERS}__<NAME>__<KEY>, without a double underscore in <NAME>")
        elif name.upper() in normal:
            mistakes.append(f"{name.upper()}: given twice, in different case; keep one")
        else:
            normal[name.upper()] = value
    return normal


class _Object(list[tuple[str, Any]]):
    """A JSON object as it is written: a key may come twice."""


def _from_json(text: str | None, found: Variables) -> dict[str, str]:
    """`{"lab": {"url": …}}` as the variables that say the same. Its content is never told: it holds secrets."""
    flat: dict[str, str] = {}
    seen: set[str] = set()
    for vcenter, key, value in _leaves(_parsed(text or "{}", found.mistakes), found):
        variable = vcenter_variable(vcenter, key)
        if isinstance(value, list):
            found.mistakes.append(f"{variable}: must be one plain value in the JSON of {VCENTERS}")
        elif variable in seen:
            found.mistakes.append(f"{variable}: given twice in the JSON of {VCENTERS}; keep one")
        elif value is not None and value != "":
            flat[variable] = value if isinstance(value, str) else json.dumps(value)
        seen.add(variable)
    return flat


def _parsed(text: str, mistakes: list[str]) -> list[tuple[str, _Object]]:
    form = f'{VCENTERS}: must be a JSON object of objects, like {{"lab": {{"url": "https://…", …}}}}'
    try:
        tree = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        mistakes.append(f"{form}: {error}")  # the error tells a place and a reason, no content
        return []
    if isinstance(tree, _Object) and all(isinstance(keys, _Object) for _, keys in tree):
        return tree
    mistakes.append(form)
    return []


def _leaves(tree: Iterable[tuple[str, _Object]], found: Variables) -> Iterator[tuple[str, str, Any]]:
    """What is said of each vCenter, whose name is told to `found`."""
    names: set[str] = set()
    for vcenter, keys in tree:
        if vcenter in names:
            found.mistakes.append(f"{VCENTERS}: {vcenter!r} is given twice in its JSON; keep one")
        elif not is_vcenter_name(vcenter.lower()):
            found.mistakes.append(f"{VCENTERS}: {vcenter!r} can't name a vCenter: {_NAME_RULE}")
        else:
            found.named.append(vcenter.lower())
            yield from ((vcenter, key, value) for key, value in keys)
        names.add(vcenter)


def _secrets_twice(from_json: Collection[str], spelled_out: Collection[str]) -> Iterator[str]:
    for variable in sorted(set(from_json) & set(spelled_out)):
        if _split(variable)[1] in _VCENTER_SECRETS:
            yield f"{variable}: given twice, here and in the JSON of {VCENTERS}; keep one"


def _check_vcenters(found: Variables) -> None:
    if not found.vcenters and not found.mistakes:
        found.mistakes.append(f"{VCENTERS}__<NAME>__URL: no vCenter is configured; set its URL, USERNAME and PASSWORD")
    spoken_of = {*found.values, *(mistake.partition(":")[0] for mistake in found.mistakes)}
    for vcenter in found.vcenters:
        found.mistakes.extend(_missing(spoken_of, vcenter))
    default = found.values.get(DEFAULT_VCENTER, "").lower()
    if default and default not in found.vcenters:
        names = ", ".join(found.vcenters) or "none"
        found.mistakes.append(f"{DEFAULT_VCENTER}: {default!r} is not configured (configured: {names})")


def _missing(spoken_of: Collection[str], vcenter: str) -> Iterator[str]:
    url = vcenter_variable(vcenter, "URL")
    if url not in spoken_of:
        yield f"{url}: missing; set where this vCenter answers, like https://vcenter.example.com"
    for key in ("USERNAME", "PASSWORD"):
        variable = vcenter_variable(vcenter, key)
        if variable not in spoken_of and variable + "_FILE" not in spoken_of:
            yield f"{variable}: missing; set it, or {variable}_FILE"


def _contradictions(values: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(name for name in values if name + "_FILE" in values):
        yield f"{name}: given twice, here and as {name}_FILE; keep one"
    for pair in _TOGETHER:
        yield from _lonely(values, *pair)
    logins = [name for name in _NATS_LOGINS if _is_set(values, name)]
    if len(logins) > 1:
        yield f"{logins[0]}: more than one way to log in to NATS ({', '.join(logins)}); keep one"


def _lonely(values: Mapping[str, str], one: str, other: str) -> Iterator[str]:
    if _is_set(values, one) != _is_set(values, other):
        here, missing = (one, other) if _is_set(values, one) else (other, one)
        yield f"{missing}: missing; {here} is of no use without it"


def _is_set(values: Mapping[str, str], name: str) -> bool:
    return name in values or name + "_FILE" in values
