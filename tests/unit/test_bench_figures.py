"""The writer of docs/figures.md."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from bench.figures import DOCS, Figure, Part, describe_machine, load, record, render, save

PARTS = {
    "looks": Part("Polls", "2026-11-27", "a machine", "`make bench`", [Figure("a poll", "11 µs", "≤ 20 µs")], ["Why."]),
    "memory": Part("Memory", "2026-11-26", "a machine", "`make bench`", [Figure("a watch", "4 KB")]),
}


def measured(name: str, rows: list[Figure]) -> dict[str, Part]:
    return record(PARTS, name, rows, on=date(2026, 12, 1), machine="another", command="`make bench ONLY=looks`")


def test_the_page_is_written_from_its_json() -> None:
    assert (DOCS / "figures.md").read_text() == render(load()), "run `make schemas`"


def test_a_part_that_was_measured_replaces_its_rows_and_keeps_its_title_and_notes() -> None:
    parts = measured("looks", [Figure("a poll", "9 µs")])
    assert parts["looks"] == Part(
        "Polls", "2026-12-01", "another", "`make bench ONLY=looks`", [Figure("a poll", "9 µs")], ["Why."]
    )


def test_the_other_parts_and_their_order_stay() -> None:
    parts = measured("looks", [])
    assert list(parts) == list(PARTS)
    assert parts["memory"] == PARTS["memory"]


def test_a_new_part_comes_last() -> None:
    parts = measured("soak", [Figure("an hour", "flat")])
    assert list(parts) == ["looks", "memory", "soak"]
    assert parts["soak"].title == "Soak"


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    save(PARTS, tmp_path)
    assert load(tmp_path) == PARTS
    assert (tmp_path / "figures.md").read_text() == render(PARTS)


def test_a_part_is_a_table_with_its_date_machine_command_and_notes() -> None:
    page = render(PARTS)
    assert "## Polls\n\n2026-11-27, `make bench`. a machine.\n" in page
    assert "| a poll | 11 µs | ≤ 20 µs |\n\n* Why.\n" in page


def test_text_of_a_row_stays_in_its_cell() -> None:
    parts = measured("looks", [Figure("   a | b", "1\n2")])
    assert "| a \\| b | 1 2 |  |" in render(parts)


def test_the_machine_is_described_by_its_cores_and_versions() -> None:
    assert "cores (" in describe_machine()
    assert ", nats-server 2." in describe_machine()
