"""A field that a release adds: events of earlier ones, which lack it, stay valid."""

from __future__ import annotations

import pytest

from task_bridge.schemas import descriptions, models


def test_a_field_with_a_release_is_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = descriptions.DESCRIPTIONS["EventData"]
    monkeypatch.setitem(fields, "user", descriptions._field("Who.", since="1.1"))

    component = models._build_open_components()["EventData"]

    assert "user" not in component["required"]
    assert "status" in component["required"]
    assert component["properties"]["user"]["x-since"] == "1.1"
