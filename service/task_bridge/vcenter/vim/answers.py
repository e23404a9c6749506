"""Read the answers that show objects: pages of properties, updates and vCenter's task history. Pure.

`session` calls these functions where the answer is parsed, which for a long one is another thread or process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .soap import Element, Ref, UnreadableXml, child, children, ref_of, text_of, type_of
from .taskinfo import QUESTION, Info, Question, parse_field, parse_info, parse_question

_DENIED = {"NoPermission", "RestrictedByAdministrator"}


class ObjectState(NamedTuple):
    """An object as vCenter reports it: a task with its fields, or a VM with its question.

    `is_complete`: all fields are here; without it, the missing ones haven't changed. `has_question_field`: the VM's
    question was reported; `question` None then means that it has none. `denied`: the fault by which vCenter withholds
    the properties. `is_gone`: the object no longer exists or left the view. `is_unauthenticated`: properties are
    missing because the session has ended.
    """

    ref: Ref
    info: Info
    is_complete: bool = True
    has_question_field: bool = False
    question: Question | None = None
    denied: str | None = None
    is_gone: bool = False
    is_unauthenticated: bool = False


class UpdateSet(NamedTuple):
    """Changes, and the version to wait from next. `is_truncated`: more changes are available already."""

    version: str
    objects: list[ObjectState]
    is_truncated: bool


class Page(NamedTuple):
    """A part of an answer, and the token to continue from; None at its end."""

    objects: list[ObjectState]
    token: str | None


def read_page(answer: Element) -> Page:
    """Raises UnreadableXml."""
    page = child(answer, "returnval")
    if page is None:
        return Page([], None)
    objects = [_read_object(one, "propSet") for one in children(page, "objects")]
    return Page(objects, text_of(child(page, "token")))


def read_update_set(answer: Element) -> UpdateSet | None:
    """Return the changes, None if nothing changed. Raises UnreadableXml."""
    update_set = child(answer, "returnval")
    version = None if update_set is None else text_of(child(update_set, "version"))
    if update_set is None or version is None:
        return None
    updates = [update for part in children(update_set, "filterSet") for update in children(part, "objectSet")]
    is_truncated = text_of(child(update_set, "truncated")) in ("true", "1")
    return UpdateSet(version, [_read_update(update) for update in updates], is_truncated)


def read_history(answer: Element) -> list[Info]:
    """Raises UnreadableXml."""
    return [parse_info(one) for one in children(answer, "returnval")]


def read_refs(answer: Element) -> list[Ref]:
    """Raises UnreadableXml."""
    return [ref for ref in map(ref_of, children(answer, "returnval")) if ref]


def _read_update(update: Element) -> ObjectState:
    kind = text_of(child(update, "kind"))
    if kind == "leave":
        return ObjectState(_read_ref(update), {}, is_gone=True)
    return _read_object(update, "changeSet", is_complete=kind == "enter")


def _read_object(element: Element, properties: str, *, is_complete: bool = True) -> ObjectState:
    """Return one object. `properties`: the tag of its properties."""
    ref = _read_ref(element)
    faults = [child(one, "fault", "fault") for one in children(element, "missingSet")]
    missing = {kind for fault in faults if fault is not None and (kind := type_of(fault))}
    if "NotAuthenticated" in missing:
        return ObjectState(ref, {}, is_unauthenticated=True)
    pairs = ((text_of(child(one, "name")), child(one, "val")) for one in children(element, properties))
    values = [(path, value) for path, value in pairs if path]
    if ref.type == "VirtualMachine":
        questions = [value for path, value in values if path == QUESTION]
        question = parse_question(questions[0]) if questions else None
        return ObjectState(ref, {}, is_complete, is_complete or bool(questions), question)
    info: dict[str, Any] = {}
    for path, value in values:
        field = path.removeprefix("info.")
        info[field] = parse_field(field, value)
    denied = None if values else next(iter(missing & _DENIED), None)
    return ObjectState(ref, info, is_complete, denied=denied, is_gone="ManagedObjectNotFound" in missing)


def _read_ref(element: Element) -> Ref:
    ref = ref_of(child(element, "obj"))
    if ref is None:
        raise UnreadableXml("a report on an object without a reference to it")
    return ref
