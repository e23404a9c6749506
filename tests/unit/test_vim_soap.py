"""What comes back at `/sdk`, as it should be and as it must not be: an answer, a fault or nothing to rely on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from task_bridge.vcenter.vim import soap
from task_bridge.vcenter.vim.soap import Ref, SoapFault, UnreadableXml, XmlOutOfBounds

ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"


def enveloped(inner: str, before: str = "") -> bytes:
    spaces = f'xmlns:s="{ENVELOPE}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    return f'<?xml version="1.0"?>{before}<s:Envelope {spaces}><s:Body>{inner}</s:Body></s:Envelope>'.encode()


def fault(inner: str) -> bytes:
    return enveloped(f"<s:Fault><faultcode>ServerFaultCode</faultcode>{inner}</s:Fault>")


def entities() -> str:
    """Nine times ten times as long: a billion laughs, and one."""
    doubled = (f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    return f'<!DOCTYPE laughs [<!ENTITY e0 "ha">{"".join(doubled)}]>'


def test_an_answer_is_what_stands_in_the_body() -> None:
    answer = soap.parse_answer(
        enveloped('<LoginResponse xmlns="urn:vim25"><returnval>a</returnval></LoginResponse>'), "Login"
    )
    assert soap.text_of(soap.child(answer, "returnval")) == "a"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>503",
        b'{"error_type": "UNAUTHENTICATED"}',
        b"\xff\xfe\x00",
        enveloped("<LoginResponse/>")[:-20],
        enveloped(""),
        b"<Envelope/>",
        enveloped("<LogoutResponse/>"),
        enveloped("<LoginResponse>&e9;</LoginResponse>", entities()),
        enveloped("<LoginResponse/>", '<!DOCTYPE Envelope SYSTEM "http://127.0.0.1:1/a.dtd">'),
        enveloped("<LoginResponse/>", "<!DOCTYPE Envelope [<!ATTLIST LoginResponse a CDATA 'b'>]>"),
        enveloped("<a>" * 300 + "</a>" * 300),
        enveloped("<LoginResponse>&#0;</LoginResponse>"),
    ],
    ids=[
        "empty",
        "html",
        "json",
        "bytes",
        "cut",
        "bodiless",
        "bare",
        "other",
        "bomb",
        "dtd",
        "attlist",
        "deep",
        "nul",
    ],
)
def test_what_is_no_answer_is_told_in_a_sentence_and_nothing_else(body: bytes) -> None:
    with pytest.raises(UnreadableXml) as told:
        soap.parse_answer(body, "Login")
    assert len(str(told.value)) < 400


PIECE = 1024 * 1024


@pytest.mark.parametrize("before", [0, 1, PIECE - 300, PIECE - 200, *range(PIECE - 130, PIECE - 90), PIECE])
def test_a_document_type_is_found_wherever_a_piece_ends(before: int) -> None:
    body = enveloped(f"<LoginResponse>{' ' * before}<![CDATA[<!DOCTYPE]]></LoginResponse>")
    for source in (body, io.BytesIO(body)):
        with pytest.raises(UnreadableXml, match="document type"):
            soap.parse_answer(source, "Login")


def test_an_answer_in_another_encoding_hides_no_document_type() -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY e "x">]><a b="&e;"/>'
    with pytest.raises(UnreadableXml):
        soap.parse_answer(text.encode("utf-16"), "Login")


def test_tags_and_attributes_are_counted_over_all_pieces() -> None:
    fitting = "<LoginResponse>" + "<a/>     " * 390_000 + "</LoginResponse>"
    assert len(soap.parse_answer(enveloped(fitting), "Login")) == 390_000
    for inner in ("<a/>     " * 400_000, "<a b=''/>     " * 200_000):
        with pytest.raises(XmlOutOfBounds, match="400000 tags and attributes"):
            soap.parse_answer(enveloped(f"<LoginResponse>{inner}</LoginResponse>"), "Login")


def test_nesting_is_bounded_and_told_as_that() -> None:
    deep = "<a>" * 2_000 + "</a>" * 2_000
    assert len(soap.parse_answer(enveloped(f"<LoginResponse>{deep}</LoginResponse>"), "Login")) == 1
    with pytest.raises(XmlOutOfBounds):
        soap.parse_answer(
            enveloped(f"<LoginResponse>{deep * 1}{'<a>' * 3_000}{'</a>' * 3_000}</LoginResponse>"), "Login"
        )


def test_no_file_is_read_for_an_answer(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    bad = enveloped(
        "<LoginResponse><returnval>&f;</returnval></LoginResponse>",
        f'<!DOCTYPE a [<!ENTITY f SYSTEM "file://{tmp_path}/secret">]>',
    )
    with pytest.raises(UnreadableXml) as told:
        soap.parse_answer(bad, "Login")
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize(
    ("inner", "kind", "said"),
    [
        (
            '<faultstring>no</faultstring><detail><NotAuthenticatedFault xsi:type="NotAuthenticated"/></detail>',
            "NotAuthenticated",
            "no",
        ),
        ("<detail><InvalidLoginFault/></detail>", "InvalidLogin", ""),
        ('<detail><Fault xsi:type="v:Odd"/></detail>', "Odd", ""),
        ("<faultstring>no</faultstring>", None, "no"),
        ("<faultstring/><detail/>", None, ""),
        ("", None, ""),
    ],
    ids=["typed", "named", "prefixed", "without-detail", "empty", "nothing"],
)
def test_a_fault_is_told_by_its_type_as_far_as_it_has_one(inner: str, kind: str | None, said: str) -> None:
    with pytest.raises(SoapFault) as told:
        soap.parse_answer(fault(inner), "Login")
    assert (told.value.kind, told.value.reason) == (kind, said)
    assert str(told.value)


def test_what_is_sent_is_escaped() -> None:
    sent = soap.build_envelope("Login", Ref("A", "<&>"), soap.xml_text("password", "</password>&<x>"))
    assert b"<password>&lt;/password&gt;&amp;&lt;x&gt;</password>" in sent
    assert b"&lt;&amp;&gt;</_this>" in sent
