"""Errors that vCenter answers with. Operations raise them; `responses.py` turns them into HTTP."""

from typing import Any

from .script import Fields, message, std_error

STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_ALLOWED_IN_CURRENT_STATE": 400,
    "UNSUPPORTED": 400,
    "UNAUTHENTICATED": 401,
    "UNAUTHORIZED": 403,
    "NOT_FOUND": 404,
    "OPERATION_NOT_FOUND": 404,
    "RESOURCE_INACCESSIBLE": 500,
    "INTERNAL_SERVER_ERROR": 500,
    "SERVICE_UNAVAILABLE": 503,
}
# `/rest` declares another status for this one, so a client can't rely on the status alone.
REST_STATUS = {**STATUS, "RESOURCE_INACCESSIBLE": 400}

CHALLENGE = (
    'Basic realm="VAPI endpoint",SIGN realm=simulated,service="VAPI endpoint",'
    'sts="https://simulated/sts/STSService/vsphere.local"'
)


class StandardError(Exception):
    """A standard error of vSphere. `body` has the form of `/api`."""

    def __init__(self, error_type: str, *messages: Fields, **more: Any) -> None:
        super().__init__(error_type)
        self.error_type = error_type
        self.body = std_error(error_type, *messages, **more)


def unauthenticated_error(challenge: str = CHALLENGE) -> StandardError:
    """Build the error for a missing session, an ended one, or a wrong password: vCenter doesn't disclose which."""
    required = message("Authentication required.", id="com.vmware.vapi.endpoint.method.authentication.required")
    return StandardError("UNAUTHENTICATED", required, challenge=challenge)


def internal_server_error() -> StandardError:
    return StandardError("INTERNAL_SERVER_ERROR", message("A provider threw an exception."))


def too_many_sessions_error(user: str, existing: int, limit: int) -> StandardError:
    text = f"User session count is limited to {limit}. Existing session count is {existing} for user {user}"
    return StandardError(
        "SERVICE_UNAVAILABLE",
        message(text, id="com.vmware.vapi.endpoint.failedToLoginMaxUserSessionCountReached"),
    )


def task_not_found_error(task: str) -> StandardError:
    return StandardError("NOT_FOUND", message(f"No task '{task}' here.", task, id="simulator.task.notFound"))


def provider_not_found_error(service: str) -> StandardError:
    """Build the error for a task of a service that vCenter doesn't have, which isn't about the task."""
    text = f"Cannot find provider for service '{service}'."
    return StandardError("NOT_FOUND", message(text, service, id="simulator.provider.notFound"))


def operation_not_found_error() -> StandardError:
    """Build the error of a service that hasn't registered its operations yet."""
    text = "Operation get of service com.vmware.cis.tasks not found."
    return StandardError("OPERATION_NOT_FOUND", message(text, id="simulator.operation.notFound"))


def unauthorized_error(task: str) -> StandardError:
    return StandardError("UNAUTHORIZED", message(f"No right to see '{task}'.", task, id="simulator.task.unauthorized"))


def unsupported_error(task: str) -> StandardError:
    return StandardError(
        "UNSUPPORTED", message(f"'{task}' can't be canceled.", task, id="simulator.task.notCancelable")
    )


def already_ended_error(task: str) -> StandardError:
    return StandardError(
        "NOT_ALLOWED_IN_CURRENT_STATE", message(f"'{task}' has ended.", task, id="simulator.task.alreadyEnded")
    )


def invalid_argument_error(problem: str) -> StandardError:
    return StandardError("INVALID_ARGUMENT", message(problem, id="simulator.argument.invalid"))


def too_many_tasks_error(limit: int) -> StandardError:
    text = f"More than {limit} tasks match."
    return StandardError("RESOURCE_INACCESSIBLE", message(text, str(limit), id="simulator.tasks.tooMany"))


def route_not_found_error() -> StandardError:
    """Build the router's error, which differs from a missing task only by its message id."""
    return StandardError("NOT_FOUND", message("Not found.", id="com.vmware.vapi.rest.httpNotFound"))


def legacy_route_not_found_error(path: str) -> StandardError:
    text = f"Unable to find operations for URL: {path}"
    return StandardError("NOT_FOUND", message(text, path, id="com.vmware.vapi.rest.operationsForUrlNotFound"))
