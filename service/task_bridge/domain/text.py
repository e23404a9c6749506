"""Text written by others, made safe to show on one line. Pure."""

from __future__ import annotations


def to_one_line(text: object) -> str:
    """Return the text on one line, with single spaces and without unprintable characters.

    Line feeds and tabs become spaces; other control characters and those that reverse the writing direction become
    U+FFFD.
    """
    spaced = " ".join(str(text).split())
    if spaced.isprintable():
        return spaced
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in spaced)


def truncate(text: object, width: int) -> str:
    """Return the text on one line, cut to `width` characters."""
    line = to_one_line(text)
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def to_printable_lines(text: str) -> str:
    """Return the text with its line feeds, and without other unprintable characters."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
