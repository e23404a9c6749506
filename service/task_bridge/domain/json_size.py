"""How large vCenter's JSON may be in an event. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

CUT_ABOVE_BYTES = 64 * 1024
DEPTH_MAX = 200
"""Consumers' parsers stop somewhere between 500 and 1,000 levels; an event adds some of its own."""


def cut_large(value: Any) -> Any:
    """Return the value, or, if its compact JSON exceeds 64 KiB or DEPTH_MAX, only that it was cut and its size.

    `error.data` and `extra` of every event pass here, before a task is kept in memory.
    """
    encoded = encode_compact(value)
    may_be_deeper = encoded.count(b"[") + encoded.count(b"{") > DEPTH_MAX
    if len(encoded) > CUT_ABOVE_BYTES or (may_be_deeper and is_deeper(value, DEPTH_MAX)):
        return describe_cut(len(encoded))
    # As it will come back from the stream: without NaN, and without what UTF-8 can't carry.
    return msgspec.json.decode(encoded)


def describe_cut(size_bytes: int) -> dict[str, Any]:
    return {"truncated": True, "bytes": size_bytes}


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether containers are nested in more than so many levels."""
    level = [value]
    for _ in range(levels):
        items = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in items for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def encode_compact(value: Any) -> bytes:
    """Encode `value` as compact UTF-8 JSON; lone surrogates, which UTF-8 can't carry, become `?`."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(replace_surrogates(value))


def replace_surrogates(value: Any) -> Any:
    """Replace lone surrogates in decoded JSON by `?`: JSON can escape them, UTF-8 can't carry them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return [replace_surrogates(item) for item in value] if isinstance(value, list | tuple) else value
