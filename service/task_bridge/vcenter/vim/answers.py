"""Read the answers that show objects: pages of properties, updates and vCenter's task history. Pure.

`session` calls these functions where the answer is parsed, which for a long one is another thread or process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .inventory import NAME_MAX, Entity
from .soap import Element, Ref, UnreadableXml, child, children, local_name, ref_of, text_of, type_of
from .taskinfo import QUESTION, Info, Question, parse_field, parse_info, parse_question

DENIED = {"NoPermission", "RestrictedByAdministrator"}
_NO_SESSION = "NotAuthenticated"


class ObjectState(NamedTuple):
    """An object as vCenter reports it: a task with its fields, or a VM with its question.

    `is_complete`: all fields are here; without it, the missing ones haven't changed. `has_question_field`: the VM's
    question was reported; `question` None then means that it has none. `denied`: the fault by which vCenter withholds
    the properties. `is_gone`: the object no longer exists or left the view. `is_withheld`: all its properties are
    withheld as from somebody who isn't logged in.
    """

    ref: Ref
    info: Info
    is_complete: bool = True
    has_question_field: bool = False
    question: Question | None = None
    denied: str | None = None
    is_gone: bool = False
    is_withheld: bool = False


class UpdateSet(NamedTuple):
    """Changes, and the version to wait from next. `is_truncated`: more changes are available already."""

    version: str
    objects: list[ObjectState]
    is_truncated: bool


class Page(NamedTuple):
    """A part of an answer, and the token to continue from; None at its end."""

    objects: list[ObjectState]
    token: str | None


class EntityState(NamedTuple):
    """An object of the inventory as vCenter shows it. `is_withheld` as for `ObjectState`."""

    ref: Ref
    entity: Entity
    is_gone: bool = False
    is_withheld: bool = False


class EntityPage(NamedTuple):
    """A part of an answer about objects of the inventory, and the token to continue from; None at its end."""

    entities: list[EntityState]
    token: str | None


def read_page(answer: Element) -> Page:
    """Raises UnreadableXml."""
    page = child(answer, "returnval")
    if page is None:
        return Page([], None)
    objects = [_read_object(one, "propSet") for one in children(page, "objects")]
    return Page(objects, text_of(child(page, "token")))


def read_entities(answer: Element) -> EntityPage:
    """Raises UnreadableXml."""
    page = child(answer, "returnval")
    if page is None:
        return EntityPage([], None)
    return EntityPage([_read_entity(one) for one in children(page, "objects")], text_of(child(page, "token")))


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
    ref, missing = _read_ref(element), set(_read_missing(element).values())
    values = [(path, value) for path, value in map(_read_property, children(element, properties)) if path]
    is_withheld = _NO_SESSION in missing and not values
    if ref.type == "VirtualMachine":
        questions = [value for path, value in values if path == QUESTION]
        question = parse_question(questions[0]) if questions else None
        has_field = bool(questions) or (is_complete and _NO_SESSION not in missing)
        return ObjectState(ref, {}, is_complete, has_field, question, is_withheld=is_withheld)
    info: dict[str, Any] = {}
    for path, value in values:
        field = path.removeprefix("info.")
        info[field] = parse_field(field, value)
    has_value = any(value is not None for _, value in values)
    denied = None if has_value else next(iter(missing & DENIED), None)
    is_gone = "ManagedObjectNotFound" in missing
    return ObjectState(ref, info, is_complete, denied=denied, is_gone=is_gone, is_withheld=is_withheld)


def _read_entity(element: Element) -> EntityState:
    missing = _read_missing(element)
    values = {path: value for path, value in map(_read_property, children(element, "propSet")) if path}
    name, parent = text_of(values.get("name")), ref_of(values.get("parent")) or ref_of(values.get("parentVApp"))
    name = name if name is None or len(name) <= NAME_MAX else None
    is_parent_hidden = bool(missing.keys() & {"parent", "parentVApp"})
    return EntityState(
        _read_ref(element),
        Entity(name, parent, parent is not None or is_parent_hidden),
        is_gone="ManagedObjectNotFound" in missing.values(),
        is_withheld=_NO_SESSION in missing.values() and not values,
    )


def _read_property(element: Element) -> tuple[str | None, Element | None]:
    """Return the path of a property and its value, None if it was removed.

    The schema fixes the order: DynamicProperty has `name` and `val`, PropertyChange has `op` between them. So the first
    and the last are looked at before all are searched, which takes longer.
    """
    if not len(element):
        return None, None
    name, value = element[0], element[-1]
    if local_name(name) != "name" or local_name(value) != "val":
        return text_of(child(element, "name")), child(element, "val")
    return text_of(name), value


def _read_missing(element: Element) -> dict[str | None, str]:
    """Return the types of the faults by which properties of an object are withheld, by path."""
    pairs = ((text_of(child(one, "path")), child(one, "fault", "fault")) for one in children(element, "missingSet"))
    return {path: kind for path, fault in pairs if fault is not None and (kind := type_of(fault))}


def is_withheld(element: Element) -> bool:
    """Return whether an object is shown as to somebody who isn't logged in: without any property."""
    return child(element, "propSet") is None and _NO_SESSION in _read_missing(element).values()


def _read_ref(element: Element) -> Ref:
    ref = ref_of(child(element, "obj"))
    if ref is None:
        raise UnreadableXml("a report on an object without a reference to it")
    return ref
