"""`/sdk` of the simulated vCenter: classic tasks by SOAP, as far as clients that follow tasks need it.

endpoint           HTTP, sessions, faults, waits
methods            the methods of managed objects
history_collector  TaskHistoryCollector
inventory          the objects that can be read, and their changes
collector          PropertyCollector, ListView
properties         properties of tasks and VMs
soap, values       requests, responses and values as XML
"""

from .endpoint import SdkEndpoint

__all__ = ["SdkEndpoint"]
