"""`/sdk` of the simulated vCenter: classic tasks by SOAP, as far as clients that follow tasks need it.

endpoint   HTTP, sessions, faults            methods     what each method does
soap       requests and answers as XML       values      values as XML
inventory  what can be read                  objects     how a task or a VM stands
changes    which task changed, without asking each
collector  PropertyCollector, ListView       history     TaskHistoryCollector
"""

from .endpoint import Sdk

__all__ = ["Sdk"]
