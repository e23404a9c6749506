"""Tokens: the lines of their file, and who is let in by them."""

from __future__ import annotations

import pytest

from task_bridge.domain.access import TOKEN_VERBS, Token, find_token, format_token_line, hash_token, parse_tokens

HASH, OTHER = hash_token(b"secret"), hash_token(b"other")


def test_a_line_gives_a_token_its_verbs_and_vcenters() -> None:
    text = f"# who\n\nci {HASH} watch,get,events lab,prod\n  board\t{OTHER.upper()}  * \r\n"
    tokens, mistakes = parse_tokens(text)
    assert mistakes == []
    assert tokens == (
        Token("ci", HASH, frozenset({"watch", "get", "events"}), frozenset({"lab", "prod"})),
        Token("board", OTHER, None, None),
    )
    assert [tokens[0].may(verb) for verb in ("watch", "events", "cancel")] == [True, True, False]
    assert all(tokens[1].may(verb) for verb in TOKEN_VERBS)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ci", "has 1 fields"),
        (f"ci {HASH}", "has 2 fields"),
        (f"ci {HASH} watch, get lab", "has 5 fields"),
        (f"c/i {HASH} *", "has a wrong name"),
        (f"{'n' * 65} {HASH} *", "has a wrong name"),
        (f"{HASH} ci *", "has no SHA-256"),
        (f"ci {HASH[1:]} *", "has no SHA-256"),
        (f"ci {HASH}0 *", "has no SHA-256"),
        (f"ci * {HASH}", "has no SHA-256"),
        (f"ci {OTHER} {HASH}", "has a verb that doesn't exist"),
        (f"ci {HASH} wacth", "'wacth'"),
        (f"ci {HASH} watch,", "has a verb that doesn't exist"),
        (f"ci {HASH} watch,*", "has a verb that doesn't exist"),
        (f"ci {HASH} Watch", "has a verb that doesn't exist"),
        (f"ci {HASH} * lab,", "has a name that no vCenter can have"),
        (f"ci {HASH} * la-b", "has a name that no vCenter can have"),
        (f"ci {OTHER} *", "has the hash of a line above"),
        ("\ufffd\ufffd", "has 1 fields"),
    ],
)
def test_a_line_with_a_mistake_is_named_without_its_hash_and_takes_nothing_from_the_others(
    line: str, problem: str
) -> None:
    tokens, (mistake,) = parse_tokens(f"first {OTHER} *\n{line}\nlast {hash_token(b'last')} get")
    assert [token.name for token in tokens] == ["first", "last"]
    assert mistake.line == 2
    assert problem in mistake.problem
    assert HASH[:8] not in mistake.problem
    assert OTHER[:8] not in mistake.problem


def test_a_token_is_found_by_its_secret_alone() -> None:
    tokens, _ = parse_tokens(f"a {HASH} *\nb {OTHER} *")
    assert [find_token(tokens, secret) for secret in (b"secret", b"other")] == list(tokens)
    for secret in (b"", b"Secret", b"secret ", HASH.encode(), b"\xff"):
        assert find_token(tokens, secret) is None
    assert find_token((), b"secret") is None


def test_one_name_may_have_two_tokens_while_one_replaces_the_other() -> None:
    tokens, mistakes = parse_tokens(f"ci {HASH} *\nci {OTHER} *")
    assert (len(tokens), mistakes) == (2, [])


@pytest.mark.parametrize(
    ("verbs", "vcenters", "tail"),
    [(None, None, "* *"), ({"watch", "get"}, {"lab"}, "get,watch lab"), (None, {"b", "a"}, "* a,b")],
)
def test_a_line_that_is_made_is_read_as_it_was_meant(
    verbs: set[str] | None, vcenters: set[str] | None, tail: str
) -> None:
    line = format_token_line("ci", b"secret", verbs, vcenters)
    assert line == f"ci {HASH} {tail}"
    (token,), mistakes = parse_tokens(line)
    assert mistakes == []
    assert (token.verbs, token.vcenters) == (verbs, vcenters)
