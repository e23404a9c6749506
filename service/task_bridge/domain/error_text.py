"""Texts and types in errors of shapes that the API description doesn't name. Pure: any JSON, bounded in depth and size.

A text is a string under a key that names one (`faultstring`, `reason`, …), or an error that is a string, or a list of
them. Keys count alike however they are written: `default_message`, `defaultMessage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

_REASON_KEYS = (
    "defaultmessage",
    "localized",
    "localizedmessage",
    "faultstring",
    "message",
    "errormessage",
    "msg",
    "errormsg",
    "reason",
)
_CAUSE_KEYS = ("messages", "error", "errors", "fault", "faultmessage", "cause", "faultcause")
"""What these hold is an error or its text too. The cause comes last."""
REASON_KEYS = (*_REASON_KEYS, *_CAUSE_KEYS)
"""Keys that hold a reason wherever they stand."""
TEXT_KEYS = (*_REASON_KEYS, "title", "summary", "detail", "details", "description", "text", *_CAUSE_KEYS)
"""Keys of texts in an error, the best text first."""
_BOX_KEYS = ("value",)
"""A box (`{"type": …, "value": …}`, `{"_typeName": …, "_value": …}`) holds what would else stand in its place."""
_ARGUMENT_KEYS = ("args", "arg", "params")
_TYPE_KEYS = ("errortype", "@class", "typename", "type")

DEPTH_MAX = 64
VALUES_MAX = 5_000
TEXTS_MAX = 50


class FoundText(NamedTuple):
    """A text, with its id and arguments where it is a localizable message."""

    text: str
    id: str | None = None
    args: tuple[Any, ...] = ()


def find_texts(error: object, keys: tuple[str, ...] = TEXT_KEYS) -> list[FoundText]:
    """Return the texts in an error, outermost first, without repeats."""
    found: dict[str, FoundText] = {}
    for one in _TextSearch(keys).search(error, holds_text=True, depth=0):
        found.setdefault(one.text, one)
        if len(found) == TEXTS_MAX:
            break
    return list(found.values())


def find_type(error: object, depth: int = 0) -> str | None:
    """Return the type that the error or what it wraps names: of a list the first, of a boxed fault the fault's own."""
    if depth > DEPTH_MAX:
        return None
    if isinstance(error, list):
        types = (find_type(item, depth + 1) for item in error[:TEXTS_MAX])
        return next((kind for kind in types if kind), None)
    if not isinstance(error, dict):
        return None
    keys = _plain_keys(error)
    wrapped = find_type(error[keys["fault"]], depth + 1) if "fault" in keys else None
    names = (error[keys[key]] for key in _TYPE_KEYS if key in keys)
    own = next((_shorten_class(name) for name in names if isinstance(name, str) and name), None)
    inner = (error[keys[key]] for key in ("error", "errors", *_BOX_KEYS) if key in keys)
    return wrapped or own or next((kind for value in inner if (kind := find_type(value, depth + 1))), None)


def _shorten_class(name: str) -> str:
    """`com.vmware.vapi.std.errors.not_found` is `NOT_FOUND`; a name without dots stays as it is."""
    return name.rsplit(".", 1)[-1].upper() if "." in name else name


def _plain_keys(value: dict[str, Any]) -> dict[str, str]:
    """Return the first keys of the object by how they read without case, `_` and `-`."""
    keys: dict[str, str] = {}
    for key in islice(value, VALUES_MAX):
        keys.setdefault(key.lower().replace("_", "").replace("-", ""), key)
    return keys


class _TextSearch:
    """One search, which gives up after VALUES_MAX values."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._ranks = {key: rank for rank, key in enumerate(keys)}
        self._left = VALUES_MAX

    def search(self, value: object, *, holds_text: bool, depth: int) -> Iterator[FoundText]:
        """Yield the texts in `value`. `holds_text`: a string in this place is one."""
        self._left -= 1
        if depth > DEPTH_MAX or self._left < 0:
            return
        if isinstance(value, str) and holds_text and value.strip():
            yield FoundText(value)
        elif isinstance(value, list):
            for item in islice(value, VALUES_MAX):
                yield from self.search(item, holds_text=holds_text, depth=depth + 1)
        elif isinstance(value, dict):
            yield from self._search_object(value, holds_text=holds_text, depth=depth)

    def _search_object(self, value: dict[str, Any], *, holds_text: bool, depth: int) -> Iterator[FoundText]:
        keys = _plain_keys(value)
        message = _read_message(value, keys)
        if message is not None:
            yield message
        skipped = _ARGUMENT_KEYS if message is None else (*_ARGUMENT_KEYS, "defaultmessage", "localized", "message")
        last = len(self._ranks)
        for key in sorted(keys, key=lambda key: self._ranks.get(key, last)):
            if key not in skipped:
                is_text = key in self._ranks or (holds_text and key in _BOX_KEYS)
                yield from self.search(value[keys[key]], holds_text=is_text, depth=depth + 1)


def _read_message(value: dict[str, Any], keys: dict[str, str]) -> FoundText | None:
    """Return a localizable message: `{"id", "default_message", "args"}`, or a fault's `{"key", "message", "arg"}`."""
    fields = {key: value[keys[key]] for key in (*_MESSAGE_KEYS, "args", "arg") if key in keys}
    if not ("args" in fields or "arg" in fields or "defaultmessage" in fields):
        return None
    names = [fields[key] for key in _MESSAGE_KEYS if isinstance(fields.get(key), str)]
    text = next((name for name in names if name.strip()), None)
    if text is None:
        return None
    name = next((fields[key] for key in ("id", "key") if isinstance(fields.get(key), str)), None)
    args = fields.get("args", fields.get("arg"))
    return FoundText(text, name, tuple(args[:TEXTS_MAX]) if isinstance(args, list) else ())


_MESSAGE_KEYS = ("defaultmessage", "localized", "message", "id", "key")
