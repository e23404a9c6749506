"""Managed objects of vCenter by their ids. Pure."""

from __future__ import annotations

import re

_TYPES = {
    "datacenter-": "Datacenter",
    "datastore-": "Datastore",
    "domain-c": "ClusterComputeResource",
    "domain-s": "ComputeResource",
    "dvportgroup-": "DistributedVirtualPortgroup",
    "dvs-": "VmwareDistributedVirtualSwitch",
    "group-d": "Folder",
    "group-h": "Folder",
    "group-n": "Folder",
    "group-p": "StoragePod",
    "group-s": "Folder",
    "group-v": "Folder",
    "host-": "HostSystem",
    "network-": "Network",
    "network-o": "OpaqueNetwork",
    "resgroup-": "ResourcePool",
    "resgroup-v": "VirtualApp",
    "vm-": "VirtualMachine",
}
_ID = re.compile(r"([a-z]+-[a-z]?)[0-9]+", re.ASCII)


def find_object_type(object_id: str) -> str | None:
    """Return the type of a managed object by its id (`vm-7`, `domain-c9`, `group-v3`), None if the id doesn't say."""
    found = _ID.fullmatch(object_id)
    return _TYPES.get(found[1]) if found else None
