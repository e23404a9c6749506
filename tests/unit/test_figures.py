"""The page of figures: a run replaces what it measured and keeps the rest."""

from __future__ import annotations

from bench.figures import FILE, split, update
from bench.stage import Row

PAGE = """# Figures

What they mean.

## looks

2026-11-27, a machine.

| measured | result | goal |
|---|---|---|
| a poll | 28 µs | |

## vim

2026-11-25, another machine.

| measured | result | goal |
|---|---|---|
| a task | 1.2 ms | 1.5 ms |
"""
ORDER = ("promptness", "looks", "vim")


def test_a_measured_part_is_replaced_and_the_others_are_kept() -> None:
    page = update(PAGE, "looks", [Row("a poll", "20 µs", "15 µs"), Row("a|b", "1")], "2026-11-28, here.", ORDER)

    assert "28 µs" not in page
    assert "| a poll | 20 µs | 15 µs |" in page
    assert "| a\\|b | 1 |  |" in page
    assert "2026-11-28, here." in page
    assert split(page)[1]["vim"].strip() == split(PAGE)[1]["vim"].strip()
    assert page.startswith("# Figures\n\nWhat they mean.\n\n## looks\n")


def test_a_new_part_has_its_place_and_the_page_is_stable() -> None:
    page = update(PAGE, "promptness", [Row("alone", "8 ms")], "today.", ORDER)

    assert list(split(page)[1]) == ["promptness", "looks", "vim"]
    assert update(page, "promptness", [Row("alone", "8 ms")], "today.", ORDER) == page


def test_the_page_in_the_docs_can_be_updated() -> None:
    page = FILE.read_text()

    updated = update(page, "looks", [Row("a poll", "20 µs")], "today.", ORDER)

    assert split(updated)[0] == split(page)[0]
    assert split(updated)[1].keys() == split(page)[1].keys()
