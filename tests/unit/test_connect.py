"""How the settings log in to NATS, as nats-py wants to be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nats.errors
import pytest

from credentials import nkey, operated
from task_bridge.jetstream.connect import connect_options, error_message
from task_bridge.settings import load

URL = "nats://127.0.0.1:4222"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, {"token": None}),
        ({"BRIDGE_NATS_TOKEN": "s3cret"}, {"token": "s3cret"}),
        ({"BRIDGE_NATS_USER": "me", "BRIDGE_NATS_PASSWORD": "s3cret"}, {"user": "me", "password": "s3cret"}),
        (
            {"BRIDGE_NATS_USER": "me", "BRIDGE_NATS_PASSWORD_FILE": "{file}"},
            {"user": "me", "password": "of a file"},
        ),
    ],
    ids=["none", "token", "user", "password-file"],
)
def test_each_way_to_log_in_is_told_as_nats_py_wants_it(
    tmp_path: Path, environ: dict[str, str], told: dict[str, Any]
) -> None:
    file = tmp_path / "secret"
    file.write_text("of a file\n")
    given = {name: value.format(file=file) for name, value in environ.items()}
    wanted = {name: value.format(file=file) if value else None for name, value in told.items()}
    assert connect_options(load(given, need_vcenters=False).nats) == {"servers": [URL], "tls": None, **wanted}


def test_a_seed_is_told_by_its_file(tmp_path: Path) -> None:
    (file := tmp_path / "seed").write_text(nkey().seed)
    told = connect_options(load({"BRIDGE_NATS_NKEY_SEED_FILE": str(file)}, need_vcenters=False).nats)
    assert told["nkeys_seed"] == str(file)


def test_credentials_are_read_each_time_and_a_half_written_file_is_an_error_to_nats_py(tmp_path: Path) -> None:
    (file := tmp_path / "creds").write_text(before := operated().credentials)
    told = connect_options(load({"BRIDGE_NATS_CREDS_FILE": str(file)}, need_vcenters=False).nats)["user_credentials"]
    assert told.data == before
    file.write_text(before[:40])
    with pytest.raises(nats.errors.Error, match="BRIDGE_NATS_CREDS_FILE"):
        _ = told.data
    file.write_text(after := operated().credentials)
    assert told.data == after


def test_a_tls_url_trusts_the_systems_authorities() -> None:
    context = connect_options(load({"BRIDGE_NATS_URL": "tls://nats.example.com"}, need_vcenters=False).nats)["tls"]
    assert context.check_hostname


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError(), "no answer in time"),  # as of a nats-server that hangs
        (nats.errors.TimeoutError(), "timeout"),
        (ConnectionRefusedError(111, "Connect call failed"), "[Errno 111] Connect call failed"),
        (EOFError(), "EOFError"),
    ],
)
def test_an_error_has_a_message_whatever_it_says_itself(error: Exception, message: str) -> None:
    assert error_message(error) == message
