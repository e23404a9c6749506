"""Task ids as vCenter's tools print them. Pure."""

from __future__ import annotations

import re

MAX_BYTES = 256
BLANKS = " \t\r\n\v\f\x85\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
QUOTES = "\"'`\u2018-\u201f\xab\xbb"
"""Parts of character classes. Blanks and quotes come with an id that was copied or printed."""
CONTROL = r"\x00-\x1f\x7f-\x9f/?#"
PUNCTUATION = rf"{BLANKS}{QUOTES}()\[\]{{}}"
_SURROUNDING = re.compile(rf"\A[{BLANKS}{QUOTES}]+|[{BLANKS}{QUOTES}]+\Z")
_VIM_REFERENCE = re.compile(r"\A(?:vim\.)?Task[:-](?=task-[0-9]+\Z|haTask-)", re.ASCII)
"""What govc (`Task:task-1`), PowerCLI (`Task-task-1`) and pyVmomi (`vim.Task:task-1`) print before the id."""
_CONTROL = re.compile(f"[{CONTROL}]")
_PUNCTUATION = re.compile(f"[{PUNCTUATION}]")
_BARE = re.compile(r"[A-Za-z0-9._:-]+", re.ASCII)


def parse_task_id(text: str) -> str:
    """Return the id that `text` means, whichever tool printed it. Raises ValueError with what is wrong with it."""
    task = _VIM_REFERENCE.sub("", _SURROUNDING.sub("", text), count=1)
    try:
        size = len(task.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        size = 0
    if not 1 <= size <= MAX_BYTES:
        raise ValueError(f"must be 1 to {MAX_BYTES} bytes of UTF-8")
    if task in (".", "..") or _CONTROL.search(task):
        raise ValueError("must not contain control characters, '/', '?' or '#', nor be '.' or '..'")
    if _PUNCTUATION.search(task):
        raise ValueError("must be one task id, without blanks, quotes or brackets in it")
    if task.startswith("haTask-"):
        raise ValueError(
            "is a task of an ESXi host itself, which vCenter doesn't know; name the task that vCenter started"
        )
    return task


def parse_bare_id(text: str) -> str | None:
    """Return the id if `text` is nothing but one plain task id, else None."""
    plain = _SURROUNDING.sub("", text)
    return plain if _BARE.fullmatch(plain) else None
