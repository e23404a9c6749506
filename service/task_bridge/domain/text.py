"""What strangers wrote, made fit to be shown on one line. Pure."""

from __future__ import annotations


def to_one_line(text: object) -> str:
    """The text on one line: what isn't printable (control characters, reversed writing) is a space or is seen."""
    spaced = " ".join(str(text).split())
    if spaced.isprintable():
        return spaced
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in spaced)


def truncate(text: object, width: int) -> str:
    """The text's beginning on one line, as much as fits."""
    shown = to_one_line(text)
    return shown if len(shown) <= width else shown[: max(width - 1, 0)] + "…"
