"""How vCenter says by which schemes its users log in."""

from __future__ import annotations

import time

import pytest

from task_bridge.vcenter.challenge import describe_unknown_schemes, parse_schemes

VCENTER = (
    'Basic realm="VAPI endpoint",SIGN realm=8071d07a,service="VAPI endpoint",sts="https://host/sts/STSService/local"'
)


@pytest.mark.parametrize(
    ("challenge", "schemes"),
    [
        (VCENTER, ["Basic", "SIGN"]),
        ("", []),
        ("Negotiate", ["Negotiate"]),
        ("Negotiate, Basic realm=x", ["Negotiate", "Basic"]),
        ("Negotiate dG9rZW4=, NTLM", ["Negotiate", "NTLM"]),
        ('Bearer realm="a, Basic b", scope = "x y"', ["Bearer"]),
        ('Digest qop="auth, auth-int", nonce="\\"Basic x", Digest qop="auth"', ["Digest"]),
        ("SIGN realm=a,SIGN realm=b", ["SIGN"]),
        ('realm="x"', []),
        ('"Basic x', ["Basic"]),  # cut off: better one scheme too many than a wrong complaint
        (f"{'x' * 100} y", []),
    ],
)
def test_the_schemes_of_a_challenge(challenge: str, schemes: list[str]) -> None:
    assert parse_schemes(challenge) == schemes


@pytest.mark.parametrize(
    ("challenges", "wants"),
    [
        ([VCENTER], None),
        ([""], None),
        (["basic realm=x"], None),
        (["SIGN realm=x", "Basic realm=x"], None),
        (["SIGN realm=x"], "SIGN"),
        (["SIGN realm=x,Bearer", "Negotiate"], "SIGN or Bearer or Negotiate"),
    ],
)
def test_only_a_challenge_without_basic_is_reported(challenges: list[str], wants: str | None) -> None:
    sentence = f"It wants {wants}, and the bridge speaks only Basic." if wants else None
    assert describe_unknown_schemes(*challenges) == sentence


@pytest.mark.parametrize("hostile", ['"' + '\\"' * 30_000, '"' * 60_001, "a " * 30_000, "a" * 60_000])
def test_a_hostile_challenge_takes_no_time(hostile: str) -> None:
    began = time.process_time()
    describe_unknown_schemes(hostile)
    assert time.process_time() - began < 0.5
