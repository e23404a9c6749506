"""The simulated inventory: a datacenter with a cluster, and in it whatever tasks are about. Pure.

Every VM, host, cluster and other object of a type that is known here exists, at a usual place, unless it was removed.
"""

from msgspec import Struct

from .task_attributes import CLUSTER, SimulatedTarget, default_name

ROOT = SimulatedTarget("Folder", "group-d1")
DATACENTER = SimulatedTarget("Datacenter", "datacenter-2")
VM_FOLDER = SimulatedTarget("Folder", "group-v3")
_HOST_FOLDER = SimulatedTarget("Folder", "group-h4")
_DATASTORE_FOLDER = SimulatedTarget("Folder", "group-s5")
_NETWORK_FOLDER = SimulatedTarget("Folder", "group-n6")
_POOL = SimulatedTarget("ResourcePool", "resgroup-10")
_USUAL_PARENTS = {
    "ClusterComputeResource": _HOST_FOLDER,
    "ComputeResource": _HOST_FOLDER,
    "Datacenter": ROOT,
    "Datastore": _DATASTORE_FOLDER,
    "DistributedVirtualPortgroup": _NETWORK_FOLDER,
    "Folder": VM_FOLDER,
    "HostSystem": CLUSTER,
    "Network": _NETWORK_FOLDER,
    "OpaqueNetwork": _NETWORK_FOLDER,
    "ResourcePool": _POOL,
    "StoragePod": _DATASTORE_FOLDER,
    "VirtualApp": _POOL,
    "VirtualMachine": VM_FOLDER,
    "VmwareDistributedVirtualSwitch": _NETWORK_FOLDER,
}
MANAGED_ENTITIES = frozenset(_USUAL_PARENTS)


class SimulatedEntity(Struct, frozen=True):
    """An object of the inventory. `name` is as vCenter spells it, with `%2f` for a slash.

    `parent` is None for the root folder, and for a VM in a vApp, which is its `vapp`.
    """

    name: str
    parent: SimulatedTarget | None = None
    vapp: SimulatedTarget | None = None


class Entities:
    """The objects of the inventory. `denied` contains the ids of those whose properties the user may not read."""

    def __init__(self) -> None:
        self.denied: set[str] = set()
        self._removed: set[SimulatedTarget] = set()
        self._entities = {
            ROOT: SimulatedEntity("Datacenters"),
            DATACENTER: SimulatedEntity("DC", ROOT),
            VM_FOLDER: SimulatedEntity("vm", DATACENTER),
            _HOST_FOLDER: SimulatedEntity("host", DATACENTER),
            _DATASTORE_FOLDER: SimulatedEntity("datastore", DATACENTER),
            _NETWORK_FOLDER: SimulatedEntity("network", DATACENTER),
            CLUSTER: SimulatedEntity("production", _HOST_FOLDER),
            _POOL: SimulatedEntity("Resources", CLUSTER),
        }

    def put(
        self,
        target: SimulatedTarget,
        name: str | None = None,
        parent: SimulatedTarget | None = None,
        vapp: SimulatedTarget | None = None,
    ) -> SimulatedTarget:
        """Add an object, rename it, or move it. Return its reference."""
        usual = None if vapp else _USUAL_PARENTS[target.type]
        self._entities[target] = SimulatedEntity(name or default_name(target), parent or usual, vapp)
        self._removed.discard(target)
        return target

    def remove(self, target: SimulatedTarget) -> None:
        """Remove an object, as if it had been destroyed."""
        self._removed.add(target)

    def find(self, target: SimulatedTarget) -> SimulatedEntity | None:
        if target in self._removed or target.type not in MANAGED_ENTITIES:
            return None
        known = self._entities.get(target)
        return known or SimulatedEntity(default_name(target), _USUAL_PARENTS[target.type])
