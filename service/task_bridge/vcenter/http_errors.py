"""What goes wrong on the way to a vCenter, in sentences that say what to do. Pure."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import httpx

from .policy import VCenterConfig

_HOSTNAME_MISMATCH = {62, 64}
_NOT_TRUSTED = {2, 18, 19, 20, 21}
_OUT_OF_DATE = {9, 10}


def describe_http_error(error: Exception, settings: VCenterConfig) -> str:
    """What failed, and the cure."""
    return f"vCenter {settings.name} ({settings.url}) {_what_failed(error, settings)}"


def is_tls_error(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLError) for cause in _causes(error))


def _what_failed(error: Exception, settings: VCenterConfig) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause, settings.name)
        if isinstance(cause, ssl.SSLError):
            said = cause.reason or cause
            return f"can't be spoken to over TLS ({said}). Check the URL's scheme and port."
        if isinstance(cause, socket.gaierror):
            return "can't be found: its name doesn't resolve. Check the URL and the DNS of this machine."
        if isinstance(cause, ConnectionRefusedError):
            return "refuses the connection. Check the URL's port, and that vCenter is up."
    return _of_http(error)


def _of_http(error: Exception) -> str:
    match error:
        case httpx.ProxyError():
            return f"can't be reached through the proxy: {error}. Check the PROXY setting."
        case httpx.ConnectTimeout():
            return "doesn't answer to the connection attempt. Check the URL and the firewalls on the way."
        case TimeoutError() | httpx.TimeoutException():
            return "doesn't answer in time. It may be busy or restarting."
        case httpx.ConnectError():
            return f"can't be reached: {_words(error)}. Check the URL and the network."
        case _:
            return f"ended the connection without a whole answer: {_words(error)}."


def _certificate(error: ssl.SSLCertVerificationError, name: str) -> str:
    setting = f"BRIDGE_VCENTERS__{name.upper()}__CA_FILE"
    if error.verify_code in _HOSTNAME_MISMATCH:
        return (
            f"shows a certificate that isn't for this name ({error.verify_message}). "
            "Use the name that the certificate is for in the URL."
        )
    if error.verify_code in _NOT_TRUSTED:
        return (
            f"shows a certificate that isn't trusted ({error.verify_message}). "
            f"Put the certificate of the CA that signed it into {setting}; "
            "vCenter offers its own at /certs/download.zip."
        )
    if error.verify_code in _OUT_OF_DATE:
        return (
            f"shows a certificate that isn't valid now ({error.verify_message}). "
            "Renew it, or set this machine's clock right."
        )
    return f"shows a certificate that can't be accepted ({error.verify_message}). See {setting}."


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, outermost first."""
    waiting: list[BaseException | None] = [error]
    known: set[int] = set()
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in known:
            continue
        known.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__, *(a for a in cause.args if isinstance(a, BaseException))]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
