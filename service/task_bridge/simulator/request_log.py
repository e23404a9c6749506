"""What was asked of the simulated vCenter, request by request, for whoever wants to judge a client."""

from collections import Counter, deque
from collections.abc import Callable, Iterator

from msgspec import Struct

from .clock import Clock


class LoggedRequest(Struct):
    """One request. `operation` is `login`, `session`, `logout`, `get`, `list`, `cancel`, `create` or `unknown`, at
    `/sdk` the method's name; `tasks` is how many task ids it named; `status` is None until answered, and for good
    when no answer was given. `fault` names the fault it met. The session and the user are those it was let in with.
    """

    at: float
    method: str
    path: str
    query: str
    operation: str = "unknown"
    task: str | None = None
    tasks: int = 0
    session: str | None = None
    user: str | None = None
    fault: str | None = None
    status: int | None = None
    seconds: float | None = None


class RequestLog:
    """The newest requests, and counts over all of them. `looks` says how often each task was shown."""

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
        return list(self._matching(lambda request: request.operation == operation and task in (None, request.task)))

    def since(self, at: float) -> list[LoggedRequest]:
        return list(self._matching(lambda request: request.at >= at))

    def clear(self) -> None:
        """Forgets all but what is in flight."""
        self.requests.clear()
        self.polls.clear()
        self.operations.clear()
        self.most_in_flight = self.in_flight

    def _matching(self, wanted: Callable[[LoggedRequest], bool]) -> Iterator[LoggedRequest]:
        return (request for request in self.requests if wanted(request))
