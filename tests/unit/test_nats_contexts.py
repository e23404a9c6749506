"""Contexts of the nats CLI as settings of the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from task_bridge.cli.nats_options import read_context, split_userinfo


def write(directory: Path, name: str, **context: Any) -> None:
    (directory / "context").mkdir(exist_ok=True)
    (directory / "context" / f"{name}.json").write_text(json.dumps(context))


@pytest.mark.parametrize(
    ("context", "settings"),
    [
        ({}, {"URL": "nats://127.0.0.1:4222"}),
        ({"url": "nats://a:1,tls://b:2"}, {"URL": "nats://a:1,tls://b:2"}),
        ({"user": "me", "password": "x", "token": "", "creds": ""}, {"USER": "me", "PASSWORD": "x"}),
        ({"url": "nats://me:p%40ss@a:1"}, {"URL": "nats://a:1", "USER": "me", "PASSWORD": "p@ss"}),
        ({"url": "nats://s3cret@a:1"}, {"URL": "nats://a:1", "TOKEN": "s3cret"}),
        ({"token": "t", "inbox_prefix": "_INBOX_me"}, {"TOKEN": "t", "INBOX_PREFIX": "_INBOX_me"}),
        ({"creds": "$WHERE/a.creds", "token": "t"}, {"CREDS_FILE": "/there/a.creds"}),
        ({"nkey": "~/a.nk"}, {"NKEY_SEED_FILE": "/home/me/a.nk"}),
        (
            {
                "cert": "/c",
                "key": "/k",
                "ca": "/a",
                "jetstream_domain": "tasks",
                "description": "x",
                "color_scheme": "y",
            },
            {"TLS_CERT_FILE": "/c", "TLS_KEY_FILE": "/k", "TLS_CA_FILE": "/a", "JS_DOMAIN": "tasks"},
        ),
    ],
)
def test_a_context_becomes_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: dict[str, str], settings: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("WHERE", "/there")
    write(tmp_path, "lab", **context)
    expected = {"URL": "nats://127.0.0.1:4222"} | settings
    assert read_context(tmp_path, "lab") == {f"BRIDGE_NATS_{name}": value for name, value in expected.items()}


def test_a_hyphen_is_the_selected_context(tmp_path: Path) -> None:
    write(tmp_path, "lab", url="nats://lab:4222")
    with pytest.raises(ValueError, match="no context is selected"):
        read_context(tmp_path, "-")
    (tmp_path / "context.txt").write_text("lab\n")
    assert read_context(tmp_path, "-") == {"BRIDGE_NATS_URL": "nats://lab:4222"}


@pytest.mark.parametrize("name", ["nix", "../lab", "", "a/b"])
def test_an_unknown_context_is_refused_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    write(tmp_path, "lab")
    with pytest.raises(ValueError, match=r"there: lab\)"):
        read_context(tmp_path, name)


@pytest.mark.parametrize("text", ["[]", "{", "\xff"])
def test_an_unreadable_context_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, "lab")
    (tmp_path / "context" / "lab.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="can't be read"):
        read_context(tmp_path, "lab")


@pytest.mark.parametrize("key", ["nsc", "user_jwt", "socks_proxy", "jetstream_api_prefix"])
def test_what_task_bridge_can_not_do_is_refused_and_not_left_out(tmp_path: Path, key: str) -> None:
    write(tmp_path, "lab", **{key: "something"})
    with pytest.raises(ValueError, match=key):
        read_context(tmp_path, "lab")


def test_a_url_without_a_login_stays_as_it_is() -> None:
    assert split_userinfo("localhost:4222") == ("localhost:4222", {})
