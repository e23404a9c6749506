"""Objects of vCenter's inventory: which ones targets of tasks are, their names, and the paths that lead to them. Pure.

Names and paths are spelled as vCenter spells them: in a name, `%2f` is a slash, `%5c` a backslash and `%25` a percent
sign. So a path can be split at its slashes, and other tools find the object by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...domain.managed_objects import find_object_type
from ...domain.task import Target
from .soap import Ref

NAME_MAX, PATH_MAX = 1_000, 8_000
"""Characters. vCenter's names have at most 80, escapes included 240."""
_DEPTH_MAX = 100
_TYPES = frozenset(
    {
        "ClusterComputeResource",
        "ComputeResource",
        "Datacenter",
        "Datastore",
        "DistributedVirtualPortgroup",
        "DistributedVirtualSwitch",
        "Folder",
        "HostSystem",
        "Network",
        "OpaqueNetwork",
        "ResourcePool",
        "StoragePod",
        "VirtualApp",
        "VirtualMachine",
        "VmwareDistributedVirtualSwitch",
    }
)
"""All types of managed entities, which are what has a name and a parent."""


class Entity(NamedTuple):
    """An object of the inventory. `name` is None if vCenter withholds it.

    `parent` is None for the root folder, and where it isn't known: then `has_parent` is True.
    """

    name: str | None
    parent: Ref | None
    has_parent: bool


class ObjectName(NamedTuple):
    """The name and the path of an object, each None if it can't be had."""

    name: str | None = None
    path: str | None = None


def find_ref(target: Target) -> Ref | None:
    """Return the reference to a target, None if it is no object of the inventory.

    Services of the REST API may have types of their own for such objects. Then the id tells the type.
    """
    if not target.id:
        return None
    if target.type in _TYPES:
        return Ref(target.type, target.id)
    kind = find_object_type(target.id)
    return Ref(kind, target.id) if kind else None


def is_below(ref: Ref, entity_id: str, entities: Mapping[Ref, Entity]) -> bool | None:
    """Return whether an object is this one or below it, None if vCenter doesn't show enough to tell."""
    for _ in range(_DEPTH_MAX):
        if ref.id == entity_id:
            return True
        entity = entities.get(ref)
        if entity is None or (entity.parent is None and entity.has_parent):
            return None
        if entity.parent is None:
            return False
        ref = entity.parent
    return None


def build_name(ref: Ref, entities: Mapping[Ref, Entity]) -> ObjectName:
    """Return the name and path of an object. `entities`: this object and what is above it, as far as vCenter shows it.

    The path is what govc prints, without the root folder. Without each of the objects above there is none.
    """
    entity = entities.get(ref)
    return ObjectName(entity.name, _build_path(ref, entities)) if entity else ObjectName()


def _build_path(ref: Ref, entities: Mapping[Ref, Entity]) -> str | None:
    names: list[str] = []
    for _ in range(_DEPTH_MAX):
        entity = entities.get(ref)
        if entity is None or entity.name is None:
            return None
        if not entity.has_parent:
            path = "/" + "/".join(reversed(names))
            return path if ref.type == "Folder" and len(path) <= PATH_MAX else None
        if entity.parent is None:
            return None
        names.append(entity.name)
        ref = entity.parent
    return None
