"""What operators may set, and what they are told when it is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from credentials import Authority, nkey
from task_bridge.domain.errors import CannotStart
from task_bridge.settings import DeliverySettings, Listen, Settings, VCenterSettings, load
from task_bridge.settings.loader import variable_names
from task_bridge.settings.nats import NATS_VARIABLES, NatsSettings

LAB = {
    "BRIDGE_VCENTERS__LAB__URL": "https://vc.example.com",
    "BRIDGE_VCENTERS__LAB__USERNAME": "bridge@vsphere.local",
    "BRIDGE_VCENTERS__LAB__PASSWORD": "hunter2",
}
EXAMPLE = Path(__file__).parents[2] / ".env.example"


def mistakes(environ: dict[str, str], *, need_vcenters: bool = True) -> list[str]:
    with pytest.raises(CannotStart) as stop:
        load(environ, need_vcenters=need_vcenters)
    assert stop.value.exit_code == 2
    # A pydantic error shows its inputs: it must not hang on to what is raised.
    assert stop.value.__cause__ is None
    assert stop.value.__suppress_context__
    return list(stop.value.lines)


def mistakes_with(**more: str) -> list[str]:
    return mistakes({**LAB, **more})


def test_a_url_a_username_and_a_password_are_all_it_needs() -> None:
    settings = load(LAB)
    lab = settings.vcenters["lab"]
    assert (lab.name, lab.url) == ("lab", "https://vc.example.com")
    assert (lab.username(), lab.password()) == ("bridge@vsphere.local", "hunter2")
    assert settings.nats.urls == ("nats://127.0.0.1:4222",)
    assert (settings.poll_min_s, settings.poll_max_s, settings.events_max_age_s) == (1, 15, 604_800)
    assert settings.http_listen == Listen("127.0.0.1", 8080)
    assert settings.warnings == ()


def test_what_is_set_is_taken() -> None:
    settings = load(
        {
            **LAB,
            "BRIDGE_NATS_URL": "tls://a.example.com:4222, b:4222",
            "BRIDGE_STALLED_AFTER": "PT2H",
            "BRIDGE_NOT_FOUND_GRACE": "90",
            "BRIDGE_HTTP_LISTEN": "[::1]:0",
            "BRIDGE_LOG_LEVEL": "DEBUG",
            "BRIDGE_ALLOW_CANCEL": "true",
            "BRIDGE_DEFAULT_VCENTER": "LAB",
            "BRIDGE_VCENTERS__LAB__URL": "https://vc.example.com:8443/",
            "BRIDGE_VCENTERS__LAB__MAX_REQUESTS_PER_SECOND": "0.5",
            "BRIDGE_VCENTERS__LAB__PROXY": "http://proxy:3128",
            "BRIDGE_VCENTERS__LAB__TIMEOUT": "2m",
        }
    )
    assert settings.nats.urls == ("tls://a.example.com:4222", "nats://b:4222")
    assert (settings.stalled_after_s, settings.not_found_grace_s) == (7200, 90)
    assert settings.http_listen == Listen("::1", 0)
    assert (settings.log_level, settings.allow_cancel, settings.default_vcenter) == ("debug", True, "lab")
    lab = settings.vcenters["lab"]
    assert (lab.url, lab.max_requests_per_second) == ("https://vc.example.com:8443", 0.5)
    assert (lab.proxy, lab.timeout_s) == ("http://proxy:3128", 120)


@pytest.mark.parametrize("scheme", ["HTTP", "Http", "http"])
def test_the_scheme_of_a_url_may_be_in_any_case(scheme: str) -> None:
    settings = load(
        {
            **LAB,
            "BRIDGE_NATS_URL": "NATS://A:4222,Tls://B:4222/",
            "BRIDGE_VCENTERS__LAB__URL": f"{scheme}://VC.example.com:8080/",
            "BRIDGE_VCENTERS__LAB__PROXY": f"{scheme}://Proxy:3128",
            "BRIDGE_VCENTERS": json.dumps({"old": {"url": "HTTPS://old", "username": "u", "password": "p"}}),
        }
    )
    assert settings.nats.urls == ("nats://A:4222", "tls://B:4222")
    lab, old = settings.vcenters["lab"], settings.vcenters["old"]
    assert (lab.url, lab.proxy, old.url) == ("http://VC.example.com:8080", "http://Proxy:3128", "https://old")
    (warning,) = settings.warnings
    assert "http:// sends the password unencrypted" in warning


@pytest.mark.parametrize(
    ("given", "prefixes"),
    [
        ({}, ["_INBOX"]),
        ({"USER": "alice"}, ["_INBOX_alice", "_INBOX"]),
        ({"USER": "alice@example.com"}, ["_INBOX_alice@example.com", "_INBOX"]),
        ({"USER": "two words"}, ["_INBOX"]),
        ({"USER": "*"}, ["_INBOX"]),
        ({"USER": "alice", "INBOX_PREFIX": "_MINE.a"}, ["_MINE.a"]),
        ({"TOKEN": "t", "INBOX_PREFIX": "_MINE"}, ["_MINE"]),
    ],
)
def test_inboxes_are_the_users_own_if_its_name_is_known(given: dict[str, str], prefixes: list[str]) -> None:
    more = {"BRIDGE_NATS_PASSWORD": "p"} if "USER" in given else {}
    settings = load({**LAB, **more, **{f"BRIDGE_NATS_{name}": value for name, value in given.items()}})
    assert settings.nats.inbox_prefixes("_INBOX") == prefixes


def test_off_means_no_http() -> None:
    assert load({**LAB, "BRIDGE_HTTP_LISTEN": "off"}).http_listen is None
    assert load({**LAB, "BRIDGE_HTTP_LISTEN": "OFF"}).http_listen is None


def test_an_empty_variable_is_not_set() -> None:
    settings = load({**LAB, "BRIDGE_POLL_MIN": "", "BRIDGE_NATS_TOKEN": "", "BRIDGE_VCENTERS__LAB__CA_FILE": ""})
    assert settings.poll_min_s == 1
    assert settings.nats.login == "none"


def test_vcenters_may_come_as_json_and_as_variables_both() -> None:
    text = '{"Lab": {"max_concurrent_requests": 7}, "old": {"url": "https://old", "username": "u", "password": 123}}'
    settings = load({**LAB, "BRIDGE_VCENTERS": text})
    assert settings.vcenters["lab"].max_concurrent_requests == 7
    assert settings.vcenters["lab"].url == "https://vc.example.com"
    assert settings.vcenters["old"].password() == "123"


def test_a_variable_goes_before_the_same_key_in_json() -> None:
    settings = load({**LAB, "BRIDGE_VCENTERS": '{"lab": {"url": "https://other"}}'})
    assert settings.vcenters["lab"].url == "https://vc.example.com"


@pytest.mark.parametrize("password", ['{"a": 1}', "[1]", "null", "true", "0012", " x ", "a__b", "päss"])
def test_a_password_is_taken_as_it_stands(password: str) -> None:
    settings = load({**LAB, "BRIDGE_VCENTERS__LAB__PASSWORD": password})
    assert settings.vcenters["lab"].password() == password


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("BRIDGE_POLL_MIN=3s\nBRIDGE_POLL_MAX='20s'\n# a comment\nOTHER=1\n")
    settings = load({**LAB, "BRIDGE_POLL_MIN": "2s"}, env_file=file)
    assert (settings.poll_min_s, settings.poll_max_s) == (2, 20)


def test_the_process_reads_its_environment_and_the_env_file_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ.keys() | LAB.keys():
        if name.startswith("BRIDGE_"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("\n".join(f"{name}={value}" for name, value in LAB.items()))
    monkeypatch.setenv("BRIDGE_CAPACITY", "12")
    settings = load()
    assert (list(settings.vcenters), settings.capacity) == (["lab"], 12)


def test_an_env_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"BRIDGE_CAPACITY=\xff\xfe")
    with pytest.raises(CannotStart, match="can't be read"):
        load(LAB, env_file=file)


WRONG = [
    ("BRIDGE_VCENTERS__LAB__URL", "vc.example.com", "must be https://host or http://host, without a path (got"),
    ("BRIDGE_VCENTERS__LAB__URL", "https://vc.example.com/ui", "without a path (got 'https://vc.example.com/ui')"),
    ("BRIDGE_VCENTERS__LAB__URL", "https://vc.example.com?x=1", "without a path"),
    ("BRIDGE_VCENTERS__LAB__URL", "https://vc.example.com:port", "must be https://host"),
    ("BRIDGE_VCENTERS__LAB__URL", "https://vc.example.com:0", "must be https://host"),
    ("BRIDGE_VCENTERS__LAB__URL", "https://vc .example.com", "must be https://host"),
    ("BRIDGE_VCENTERS__LAB__URL", "https://", "must be https://host"),
    ("BRIDGE_VCENTERS__LAB__URL", "ftp://vc.example.com", "must be https://host"),
    ("BRIDGE_VCENTERS__LAB__VERIFY_TLS", "perhaps", "must be true or false (got 'perhaps')"),
    ("BRIDGE_VCENTERS__LAB__API", "soap", "must be 'auto', 'api' or 'rest'"),
    ("BRIDGE_VCENTERS__LAB__MAX_CONCURRENT_REQUESTS", "0", "greater than or equal to 1"),
    ("BRIDGE_VCENTERS__LAB__MAX_REQUESTS_PER_SECOND", "0", "greater than 0"),
    ("BRIDGE_VCENTERS__LAB__MAX_REQUESTS_PER_SECOND", "inf", "must be a finite number"),
    ("BRIDGE_VCENTERS__LAB__TIMEOUT", "6m", "must be between 1s and 5m"),
    ("BRIDGE_VCENTERS__LAB__TIMEOUT", "500ms", "must be between 1s and 5m"),
    ("BRIDGE_VCENTERS__LAB__TIMEOUT", "soon", "duration"),
    ("BRIDGE_VCENTERS__LAB__PROXY", "socks5://proxy:1080", "must be http://host:port"),
    ("BRIDGE_VCENTERS__LAB__CA_FILE", "/nowhere/ca.pem", "can't be read: No such file or directory"),
    ("BRIDGE_VCENTERS__LAB__PASWORD", "x", "no such setting of a vCenter; did you mean PASSWORD?"),
    ("BRIDGE_VCENTERS__LAB__NAME", "x", "no such setting of a vCenter"),
    ("BRIDGE_VCENTERS__LAB-1__URL", "https://x", "'lab-1' can't name a vCenter"),
    ("BRIDGE_VCENTERS__LAB__EAST__URL", "https://x", "must be BRIDGE_VCENTERS__<NAME>__<KEY>"),
    ("BRIDGE_VCENTERS__LAB_URL", "https://x", "must be BRIDGE_VCENTERS__<NAME>__<KEY>"),
    ("BRIDGE_VCENTERS", "{", "must be a JSON object"),
    ("BRIDGE_VCENTERS", '["lab"]', "must be a JSON object"),
    ("BRIDGE_VCENTERS", '{"a__b": {"url": "https://x"}}', "'a__b' can't name a vCenter"),
    ("BRIDGE_VCENTERS", '{"a-b": {}}', "'a-b' can't name a vCenter"),
    ("BRIDGE_VCENTERS", '{"lab": {}, "lab": {"api": "rest"}}', "'lab' is given twice in its JSON"),
    ("BRIDGE_DEFAULT_VCENTER", "prod", "'prod' is not configured (configured: lab)"),
    ("BRIDGE_SUBJECT_PREFIX", "vcenter.*", "must be subject tokens"),
    ("BRIDGE_STREAM_REPLICAS", "6", "less than or equal to 5 (got '6')"),
    ("BRIDGE_STREAM_REPLICAS", "three", "must be a whole number (got 'three')"),
    ("BRIDGE_EVENTS_MAX_AGE", "500ms", "must be between 1s and 365d"),
    ("BRIDGE_CAPACITY", "0", "greater than or equal to 1"),
    ("BRIDGE_POLL_MIN", "0", "must be between 10ms and 365d"),
    ("BRIDGE_POLL_MIN", "soon", "must be a duration"),
    ("BRIDGE_ACK_WAIT", "500ms", "must be between 1s and 365d"),
    ("BRIDGE_PROVISION", "always", "must be 'auto' or 'verify' (got 'always')"),
    ("BRIDGE_HTTP_LISTEN", "8080", "must be host:port"),
    ("BRIDGE_HTTP_LISTEN", "127.0.0.1:65536", "must be host:port"),
    ("BRIDGE_LOG_FORMAT", "xml", "must be 'auto', 'console' or 'json'"),
    ("BRIDGE_LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
    ("BRIDGE_NATS_URL", "http://nats:4222", "must be nats://host:port"),
    ("BRIDGE_NATS_URL", ",", "must name at least one server"),
    ("BRIDGE_NATS_URL", "nats://a,,nats://b", "must name a server before and after each comma"),
    ("BRIDGE_NATS_JS_DOMAIN", "a.b", "must be letters, digits, - and _"),
    ("BRIDGE_NATS_INBOX_PREFIX", "_INBOX.>", "must be a NATS subject without wildcards, like _INBOX_alice"),
    ("BRIDGE_NATS_INBOX_PREFIX", "a..b", "must be a NATS subject without wildcards, like _INBOX_alice"),
    ("BRIDGE_NATS_CREDS_FILE", "/nowhere", "can't be read"),
]


@pytest.mark.parametrize(("variable", "value", "told"), WRONG)
def test_a_wrong_value_is_one_line_that_names_its_variable(variable: str, value: str, told: str) -> None:
    (line,) = mistakes_with(**{variable: value})
    assert line.startswith(f"{variable}: ")
    assert told in line
    assert "\n" not in line


def test_the_longest_interval_must_not_be_below_the_shortest() -> None:
    assert mistakes_with(BRIDGE_POLL_MIN="20s") == ["BRIDGE_POLL_MAX: must not be below BRIDGE_POLL_MIN"]


def test_all_mistakes_are_told_at_once() -> None:
    lines = mistakes_with(
        BRIDGE_CAPACITY="0",
        BRIDGE_NATS_USER="me",
        BRIDGE_POLL_MAX="0.5s",
        BRIDGE_VCENTERS__LAB__URL="vc",
        BRIDGE_VCENTERS__OLD__URL="https://old",
        BRIDGE_VCENTERS__OLD__API="soap",
        BRIDGE_DEFAULT_VCENTER="prod",
    )
    assert [line.partition(":")[0] for line in lines] == [
        "BRIDGE_CAPACITY",
        "BRIDGE_DEFAULT_VCENTER",
        "BRIDGE_NATS_PASSWORD",
        "BRIDGE_POLL_MAX",
        "BRIDGE_VCENTERS__LAB__URL",
        "BRIDGE_VCENTERS__OLD__API",
        "BRIDGE_VCENTERS__OLD__PASSWORD",
        "BRIDGE_VCENTERS__OLD__USERNAME",
    ]


def test_no_vcenter_at_all_is_a_mistake() -> None:
    (line,) = mistakes({})
    assert line.startswith("BRIDGE_VCENTERS__<NAME>__URL: no vCenter is configured")


@pytest.mark.parametrize("key", ["URL", "USERNAME", "PASSWORD"])
def test_a_vcenter_needs_its_url_and_login(key: str) -> None:
    variable = f"BRIDGE_VCENTERS__LAB__{key}"
    (line,) = mistakes({name: value for name, value in LAB.items() if name != variable})
    assert line.startswith(f"{variable}: missing; set ")


def test_who_only_talks_to_nats_needs_no_vcenter_and_no_file_of_one() -> None:
    environ = {"BRIDGE_VCENTERS__LAB__PASSWORD_FILE": "/nowhere", "BRIDGE_DEFAULT_VCENTER": "lab"}
    settings = load(environ, need_vcenters=False)
    assert (settings.vcenters, settings.default_vcenter) == ({}, "lab")
    assert mistakes({"BRIDGE_NATS_URL": "x y"}, need_vcenters=False)


def test_a_secret_given_twice_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    (line,) = mistakes_with(BRIDGE_VCENTERS__LAB__PASSWORD_FILE=str(file))
    assert line.startswith("BRIDGE_VCENTERS__LAB__PASSWORD: given twice, here and as")
    (line,) = mistakes_with(BRIDGE_NATS_TOKEN="a", BRIDGE_NATS_TOKEN_FILE=str(file))
    assert line.startswith("BRIDGE_NATS_TOKEN: given twice")
    (line,) = mistakes_with(BRIDGE_VCENTERS__lab__PASSWORD="other")
    assert line == "BRIDGE_VCENTERS__LAB__PASSWORD: given twice, in different case; keep one"
    (line,) = mistakes_with(BRIDGE_VCENTERS='{"lab": {"api": "rest"}, "LAB": {"api": "rest"}}')
    assert line == "BRIDGE_VCENTERS__LAB__API: given twice in the JSON of BRIDGE_VCENTERS; keep one"


@pytest.mark.parametrize("key", ["password", "PASSWORD_FILE"])
def test_a_password_in_the_json_and_as_a_variable_is_a_mistake(tmp_path: Path, key: str) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    variable = f"BRIDGE_VCENTERS__LAB__{key.upper()}"
    without = {name: value for name, value in LAB.items() if not name.endswith("PASSWORD")}
    (line,) = mistakes({**without, variable: str(file), "BRIDGE_VCENTERS": json.dumps({"lab": {key: str(file)}})})
    assert line == f"{variable}: given twice, here and in the JSON of BRIDGE_VCENTERS; keep one"


@pytest.mark.parametrize("second", ['"rest"', "null"])
def test_a_key_twice_in_the_json_is_a_mistake(second: str) -> None:
    (line,) = mistakes_with(BRIDGE_VCENTERS=f'{{"lab": {{"api": {second}, "api": "rest"}}}}')
    assert line == "BRIDGE_VCENTERS__LAB__API: given twice in the JSON of BRIDGE_VCENTERS; keep one"


@pytest.mark.parametrize("said", ["{}", '{"url": null}', '{"url": ""}'])
def test_a_vcenter_that_the_json_only_names_is_not_passed_over(said: str) -> None:
    text = f'{{"lab2": {said}}}'
    for lines in (mistakes_with(BRIDGE_VCENTERS=text), mistakes({"BRIDGE_VCENTERS": text})):
        assert [line.partition(";")[0] for line in lines] == [
            f"BRIDGE_VCENTERS__LAB2__{key}: missing" for key in ("PASSWORD", "URL", "USERNAME")
        ]


def test_a_value_of_the_json_that_is_no_plain_one_is_told_once() -> None:
    said = {"url": "https://vc", "username": "me", "password": ["x"]}
    (line,) = mistakes({"BRIDGE_VCENTERS": json.dumps({"lab": said})})
    assert line == "BRIDGE_VCENTERS__LAB__PASSWORD: must be one plain value in the JSON of BRIDGE_VCENTERS"


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "-----BEGIN NATS USER JWT-----\n",
        "-----BEGIN NATS USER JWT-----\nx\n-----BEGIN USER NKEY SEED-----\n",
    ],
)
def test_files_that_hold_no_seed_or_no_jwt_are_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "half"
    file.write_text(text)
    (line,) = mistakes_with(BRIDGE_NATS_NKEY_SEED_FILE=str(file))
    assert line == "BRIDGE_NATS_NKEY_SEED_FILE: can't be right: the file holds no NKey seed, like SU…"
    (line,) = mistakes_with(BRIDGE_NATS_CREDS_FILE=str(file))
    told = "can't be right: the file doesn't hold both a NATS user's JWT and its seed"
    assert line == f"BRIDGE_NATS_CREDS_FILE: {told}"


def test_one_way_to_log_in_to_nats_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_text(nkey().seed)
    (line,) = mistakes_with(BRIDGE_NATS_TOKEN="a", BRIDGE_NATS_NKEY_SEED_FILE=str(file))
    assert "more than one way to log in to NATS (BRIDGE_NATS_NKEY_SEED_FILE, BRIDGE_NATS_TOKEN)" in line


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("BRIDGE_NATS_USER", "BRIDGE_NATS_PASSWORD"),
        ("BRIDGE_NATS_PASSWORD", "BRIDGE_NATS_USER"),
        ("BRIDGE_NATS_TLS_CERT_FILE", "BRIDGE_NATS_TLS_KEY_FILE"),
        ("BRIDGE_NATS_TLS_KEY_FILE", "BRIDGE_NATS_TLS_CERT_FILE"),
    ],
)
def test_what_belongs_together_is_given_together(given: str, missing: str) -> None:
    (line,) = mistakes_with(**{given: str(EXAMPLE)})
    assert line == f"{missing}: missing; {given} is of no use without it"


def test_tls_files_that_hold_no_certificates_are_told() -> None:
    lines = mistakes_with(
        BRIDGE_NATS_TLS_CA_FILE=str(EXAMPLE),
        BRIDGE_NATS_TLS_CERT_FILE=str(EXAMPLE),
        BRIDGE_NATS_TLS_KEY_FILE=str(EXAMPLE),
    )
    assert [line.partition(":")[0] for line in lines] == ["BRIDGE_NATS_TLS_CA_FILE", "BRIDGE_NATS_TLS_KEY_FILE"]


@pytest.mark.parametrize(
    ("variable", "value", "cure"),
    [
        ("BRIDGE_VCENTERS__LAB__URL", "https://root:hunter2@vc", "set this vCenter's USERNAME and PASSWORD"),
        ("BRIDGE_VCENTERS__LAB__PROXY", "http://root:hunter2@proxy", "use a proxy that"),
        ("BRIDGE_NATS_URL", "nats://root:hunter2@nats", "set BRIDGE_NATS_USER and BRIDGE_NATS_PASSWORD"),
        ("BRIDGE_NATS_URL", "hunter2@nats", "set BRIDGE_NATS_USER and BRIDGE_NATS_PASSWORD"),
    ],
)
def test_credentials_in_a_url_are_refused_with_the_cure(variable: str, value: str, cure: str) -> None:
    (line,) = mistakes_with(**{variable: value})
    assert cure in line
    assert "hunter2" not in line


def test_secrets_are_never_told(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from-file")
    settings = load(
        {
            **LAB,
            "BRIDGE_NATS_USER": "me",
            "BRIDGE_NATS_PASSWORD": "hunter3",
            "BRIDGE_VCENTERS__OLD__URL": "https://old",
            "BRIDGE_VCENTERS__OLD__USERNAME": "me",
            "BRIDGE_VCENTERS__OLD__PASSWORD_FILE": str(file),
        }
    )
    assert settings.vcenters["old"].password() == "from-file"
    told = f"{settings!r} {settings} {settings.describe()} {settings.model_dump()} {settings.model_dump_json()}"
    assert not re.search("hunter|from-file", told)


@pytest.mark.parametrize(
    "environ",
    [
        {**LAB, "BRIDGE_VCENTERS": '{"lab": {"password": "hunter2"'},
        {**LAB, "BRIDGE_VCENTERS": '{"lab": {"password": {"hunter2": "hunter2"}}}'},
        {**LAB, "BRIDGE_VCENTERS__LAB__PASSWORD_FILE": "hunter2"},
        {**LAB, "BRIDGE_NATS_CREDS_FILE": "hunter2"},
        {**LAB, "BRIDGE_CAPACITY": "0"},
    ],
)
def test_mistakes_are_told_without_secrets(environ: dict[str, str]) -> None:
    assert "hunter2" not in "".join(mistakes(environ))


def file_login(path: Path) -> Settings:
    environ = {name: value for name, value in LAB.items() if not name.endswith("PASSWORD")}
    return load({**environ, "BRIDGE_VCENTERS__LAB__PASSWORD_FILE": str(path)})


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_secret_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    lab = file_login(file).vcenters["lab"]
    assert lab.password() == "first"
    replace(file, "second\r\n")
    assert lab.password() == "second"


def test_a_secret_file_rewritten_with_its_old_length_and_time_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first")
    lab = file_login(file).vcenters["lab"]
    stat = file.stat()
    file.write_text("other")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert lab.password() == "other"  # the kernel's own change time can't be set back


def test_while_a_secret_file_is_replaced_the_last_secret_is_used(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first")
    lab = file_login(file).vcenters["lab"]
    replace(file, "")
    assert lab.password() == "first"
    file.unlink()
    assert lab.password() == "first"
    file.write_text("second")
    assert lab.password() == "second"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_secret_file_that_gives_no_secret_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CannotStart, match=r"^BRIDGE_VCENTERS__LAB__PASSWORD_FILE: can't be"):
        file_login(file)


def test_nats_secrets_come_from_files_too(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t1\n")
    nats = load({**LAB, "BRIDGE_NATS_TOKEN_FILE": str(file)}).nats
    assert (nats.login, nats.token(), nats.password()) == ("token", "t1", None)
    replace(file, "t2")
    assert nats.token() == "t2"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("BRIDGE_POL_MIN", "; did you mean BRIDGE_POLL_MIN?"),
        ("BRIDGE_NATS__URL", "; did you mean BRIDGE_NATS_URL?"),
        ("BRIDGE_VCENTER__LAB__URL", "; did you mean BRIDGE_VCENTERS__LAB__URL?"),
        ("BRIDGE_SOMETHING_ELSE", ""),
    ],
)
def test_an_unknown_variable_is_a_warning(variable: str, hint: str) -> None:
    assert load({**LAB, variable: "x"}).warnings == (f"{variable}: no such setting, ignored{hint}",)


def test_unencrypted_and_unverified_connections_are_warned_about() -> None:
    (line,) = load({**LAB, "BRIDGE_VCENTERS__LAB__URL": "http://vc"}).warnings
    assert line.startswith("BRIDGE_VCENTERS__LAB__URL: http:// sends the password unencrypted")
    (line,) = load({**LAB, "BRIDGE_VCENTERS__LAB__VERIFY_TLS": "false"}).warnings
    assert line.startswith("BRIDGE_VCENTERS__LAB__VERIFY_TLS: false accepts any certificate")


def test_settings_made_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CAPACITY", "12")
    assert Settings(poll_max_s="1m").capacity == 50_000


def test_the_description_tells_every_setting() -> None:
    described = load(LAB).describe()
    assert described["vcenters"] == {"lab": "https://vc.example.com"}
    assert described["nats"] == {"urls": ["nats://127.0.0.1:4222"], "login": "none", "tls": False}
    assert described["http_listen"] == "127.0.0.1:8080"
    assert described.keys() == Settings.model_fields.keys() - {"warnings"}


def every_setting() -> dict[str, tuple[str, str]]:
    """(default as it is written, meaning) by variable."""
    vcenter = {name: f"BRIDGE_VCENTERS__LAB__{key.upper()}" for name, key in variable_names(VCenterSettings).items()}
    deliveries = {
        name: f"BRIDGE_DELIVERIES__CHAT__{str(field.validation_alias).upper()}"
        for name, field in DeliverySettings.model_fields.items()
        if name != "name"
    }
    models: tuple[tuple[Any, dict[str, str]], ...] = (
        (DeliverySettings, deliveries),
        (VCenterSettings, vcenter),
        (Settings, variable_names(Settings)),
    )
    nats = {
        one.variable: (",".join(getattr(NatsSettings(), name) or ()), one.meaning)
        for name, one in NATS_VARIABLES.items()
    }
    assert NATS_VARIABLES.keys() == {one.name for one in dataclasses.fields(NatsSettings)}
    return nats | {
        variable: (written(model.model_fields[name].get_default()), model.model_fields[name].description)
        for model, names in models
        for name, variable in names.items()
    }


def written(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if isinstance(default, str | int) else ""


def test_the_example_tells_every_setting_with_its_default_and_meaning() -> None:
    text = EXAMPLE.read_text()
    lines = dict(re.findall(r"^#(BRIDGE_\w+)=(.*)$", text, re.MULTILINE))
    required = dict(re.findall(r"^(BRIDGE_\w+)=(.+)$", text, re.MULTILINE))
    assert set(required) == set(LAB)
    settings = every_setting()
    assert lines == {name: default for name, (default, _) in settings.items() if name not in required}
    prose = text.replace("\n# ", " ")
    for name, (_, meaning) in settings.items():
        assert re.search(rf"{re.escape(meaning)}\n#?{name}=", prose), name


def test_the_example_can_be_used_as_it_stands() -> None:
    assert load({}, env_file=EXAMPLE).warnings == ()


def test_the_api_over_http_is_off_unless_it_has_a_file_of_tokens(tmp_path: Path) -> None:
    assert load(LAB).http_tokens_file is None
    file = tmp_path / "tokens"
    (mistake,) = mistakes_with(BRIDGE_HTTP_TOKENS_FILE=str(file))
    assert mistake == "BRIDGE_HTTP_TOKENS_FILE: can't be read: No such file or directory"
    file.touch()  # nobody has a token yet
    settings = load({**LAB, "BRIDGE_HTTP_TOKENS_FILE": str(file)})
    assert (settings.http_tokens_file, settings.http_insecure_tokens, settings.warnings) == (file, False, ())


def test_the_certificate_of_http_needs_its_own_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.pair("bridge"), authority.pair("other")
    given = {"BRIDGE_HTTP_TLS_CERT_FILE": str(pair.certificate)}
    (mistake,) = mistakes_with(**given)
    assert mistake.startswith("BRIDGE_HTTP_TLS_KEY_FILE: missing")
    (mistake,) = mistakes_with(**given, BRIDGE_HTTP_TLS_KEY_FILE=str(other.key))
    assert "must be the key of BRIDGE_HTTP_TLS_CERT_FILE" in mistake
    settings = load({**LAB, **given, "BRIDGE_HTTP_TLS_KEY_FILE": str(pair.key)})
    assert (settings.http_tls_cert_file, settings.http_tls_key_file) == (pair.certificate, pair.key)


def test_risks_of_the_api_over_http_are_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.touch()
    given = {"BRIDGE_HTTP_TOKENS_FILE": str(file), "BRIDGE_HTTP_INSECURE_TOKENS": "true", "BRIDGE_HTTP_LISTEN": "off"}
    assert [warning.partition(":")[0] for warning in load({**LAB, **given}).warnings] == [
        "BRIDGE_HTTP_TOKENS_FILE",
        "BRIDGE_HTTP_INSECURE_TOKENS",
    ]
