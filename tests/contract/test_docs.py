"""The pages: links that lead somewhere, and a reference that is what the schema says."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from contract.reference import reference
from task_bridge.delivery.signature import parse_secrets, sign

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += sorted(page for folder in ("docs", "examples", "deploy") for page in (ROOT / folder).rglob("*.md"))
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def test_the_event_reference_is_what_the_schema_says() -> None:
    assert (ROOT / "docs/events.md").read_text() == reference(), "make schemas writes it anew"


def links_of(text: str) -> list[str]:
    return [link for link in _LINK.findall(_FENCED.sub("", text)) if "://" not in link]


def anchors_of(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links_of(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    assert broken == []


def test_the_tests_that_prove_a_guarantee_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs/guarantees.md").read_text())
    there = {path: (ROOT / path).read_text() for path, _ in named if (ROOT / path).exists()}
    assert len(named) > 30
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in there.get(path, "")] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    assert links_of("[a](b.md) and `[x]` [c](https://d)\n```\n[e](f)\n```\n[g](#h)") == ["b.md", "#h"]
    assert anchors_of("# A title, of `data`\n") == {"a-title-of-data"}


def code_of(page: str, language: str) -> str:
    """The first block of code in this language."""
    return (ROOT / page).read_text().partition(f"```{language}\n")[2].partition("```")[0]


def test_the_checks_of_signatures_on_the_page_of_deliveries_work() -> None:
    secret = "whsec_" + base64.b64encode(b"the new key of 24 bytes!").decode()
    keys = parse_secrets(f"whsec_b2xk\n{secret}")
    now, body = int(time.time()), b'{"text": "\xc3\xa4"}'
    signature = sign(keys, "1-2/3", now, body)
    headers = {"webhook-id": "1-2/3", "webhook-timestamp": str(now), "webhook-signature": signature}
    names: dict[str, Any] = {}
    exec(code_of("docs/deliveries.md", "python"), names)  # noqa: S102 - it is ours
    assert names["is_genuine"](secret, headers, body)
    assert not names["is_genuine"](secret, headers, body + b" ")
    assert not names["is_genuine"](secret, headers | {"webhook-timestamp": str(now - 400)}, body)
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no node here; the check in Python works")
    given = json.dumps([secret, headers, body.decode()])
    check = f"const [secret, headers, body] = {given}; const good = isGenuine(secret, headers, Buffer.from(body)); "
    check += "console.log(good, isGenuine(secret, headers, Buffer.from(body + ' ')))"
    program = code_of("docs/deliveries.md", "js") + check
    ended = subprocess.run([node, "-e", program], capture_output=True, text=True, check=False)
    assert ended.stdout == "true false\n", ended.stderr
