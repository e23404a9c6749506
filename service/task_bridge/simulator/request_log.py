"""Log of the requests that the simulated vCenter received, so that tests can judge a client."""

from collections import Counter, deque

from msgspec import Struct

from .options import Clock


class LoggedRequest(Struct):
    """One request.

    `operation` is `login`, `session`, `logout`, `get`, `list`, `cancel`, `create` or `unknown`, and at `/sdk` the
    method's name, but `names` where it reads objects of the inventory and what is above them. `tasks` is the number of
    task ids that the request names. `status` is None until the request is answered, and stays None if it never is.
    `fault` is the name of the fault that was applied. `session` and `user` are those that the request was
    authenticated with.
    """

    at: float
    method: str
    path: str
    query: str
    operation: str = "unknown"
    task: str | None = None
    tasks: int = 0
    return_all: bool = False
    session: str | None = None
    user: str | None = None
    fault: str | None = None
    status: int | None = None
    seconds: float | None = None


class RequestLog:
    """The newest requests, and counts over all of them. `polls` counts how often each task was shown."""

    def __init__(self, clock: Clock, remembered: int) -> None:
        self.requests: deque[LoggedRequest] = deque(maxlen=remembered)
        self.polls: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self._clock = clock

    def begin(self, method: str, path: str, query: str) -> LoggedRequest:
        request = LoggedRequest(self._clock(), method, path, query)
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return request

    def finish(self, request: LoggedRequest) -> None:
        request.seconds = self._clock() - request.at
        self.operations[request.operation] += 1
        self.in_flight -= 1

    def of(self, operation: str, task: str | None = None) -> list[LoggedRequest]:
        """Return the requests of an operation; `task` narrows them to those about one task."""
        return [one for one in self.requests if one.operation == operation and task in (None, one.task)]

    def since(self, at: float) -> list[LoggedRequest]:
        return [request for request in self.requests if request.at >= at]

    def clear(self) -> None:
        """Forget everything but the requests in flight."""
        self.requests.clear()
        self.polls.clear()
        self.operations.clear()
        self.most_in_flight = self.in_flight
