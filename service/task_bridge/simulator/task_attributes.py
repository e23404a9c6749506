"""Attributes that a simulated task has from its creation to its end. Pure."""

from typing import TypedDict

from msgspec import Struct

from .script import Flavour, Script

SERVICES: dict[Flavour, str] = {
    "vlcm": "com.vmware.esx.settings.clusters.software",
    "appliance": "com.vmware.appliance.vcenter.settings.v1.config",
    "minimal": "com.vmware.simulator",
    "vim": "VirtualMachine",
}
OPERATIONS: dict[Flavour, str] = {
    "vlcm": "apply$task",
    "appliance": "scan_desired_state",
    "minimal": "run",
    "vim": "powerOn",
}
DESCRIPTIONS: dict[Flavour, str] = {
    "vlcm": "Simulated change of a cluster's image",
    "appliance": "Simulated scan of the appliance",
    "minimal": "Simulated task",
    "vim": "Power On virtual machine",
}
ADMINISTRATOR = "Administrator@VSPHERE.LOCAL"


class SimulatedTarget(Struct, frozen=True):
    """A managed object, by type and id."""

    type: str
    id: str


CLUSTER = SimulatedTarget("ClusterComputeResource", "domain-c9")


def default_name(target: SimulatedTarget) -> str:
    """Return the name of an object that nobody has named."""
    return f"name of {target.id}"


class TaskDetails(TypedDict, total=False):
    """Keyword arguments for a new task. Every one is optional.

    Without `service`, the suffix of `id` is the service. Without `target`, a CIS task is about `CLUSTER` and a classic
    one (flavour `vim`) about a VM of its own. A classic one calls its target `target_name`.
    """

    id: str | None
    flavour: Flavour | None
    service: str | None
    operation: str | None
    description: str | None
    target: SimulatedTarget | None
    target_name: str
    user: str | None
    parent: str


class TaskAttributes(Struct, frozen=True):
    """A task's attributes. The filters of a list compare these, whatever the body shows. `name` is the target's."""

    flavour: Flavour
    service: str
    operation: str
    description: str
    target: SimulatedTarget | None = None
    user: str | None = None
    parent: str = ""
    cancelable: bool = True
    name: str | None = None


def build_attributes(
    task_id: str, flavour: Flavour, service: str, script: Script, details: TaskDetails
) -> TaskAttributes:
    """Return the details, completed by the flavour's defaults."""
    target = details.get("target", CLUSTER)
    if flavour == "vim" and target is CLUSTER:
        target = SimulatedTarget("VirtualMachine", task_id.replace("task", "vm"))
    return TaskAttributes(
        flavour,
        service,
        details.get("operation") or OPERATIONS[flavour],
        details.get("description") or DESCRIPTIONS[flavour],
        target,
        details.get("user", ADMINISTRATOR),
        details.get("parent", ""),
        flavour != "appliance" if script.cancelable is None else script.cancelable,
        details.get("target_name") or default_name(target) if flavour == "vim" and target else None,
    )


FAMILIES = ("com.vmware.appliance.", "com.vmware.esx.settings.")
"""The beginnings of services whose tasks every vCenter has."""


def provider_of(task_id: str) -> str:
    """Return the part after the first colon. All ids without a colon belong to one nameless provider."""
    return task_id.partition(":")[2]
