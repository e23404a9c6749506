"""Describe failed requests to a vCenter in sentences that say what to do. Knows the exceptions of httpx and ssl."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import httpx

from .policy import VCenterConfig

# OpenSSL's codes (X509_V_ERR_…) by what the operator has to do.
_HOSTNAME_MISMATCH = {62, 64}
_NOT_TRUSTED = {2, 18, 19, 20, 21}
_OUT_OF_DATE = {9, 10}


def describe_http_error(error: Exception, settings: VCenterConfig) -> str:
    """Return a sentence about what failed, and one about how to fix it."""
    return f"vCenter {settings.name} ({settings.url}) {_describe_cause(error, settings)}"


def is_tls_error(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLError) for cause in _iterate_causes(error))


def _describe_cause(error: Exception, settings: VCenterConfig) -> str:
    for cause in _iterate_causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return _describe_certificate_error(cause, settings.name)
            case ssl.SSLError():
                return f"doesn't speak TLS as expected ({cause.reason or cause}). Check the URL's scheme and port."
            case socket.gaierror():
                return "has a host name that doesn't resolve. Check the URL and this machine's DNS."
            case ConnectionRefusedError():
                return "refuses the connection. Check the URL's port, and that vCenter is running."
    return _describe_httpx_error(error)


def _describe_httpx_error(error: Exception) -> str:
    text = (str(error) or type(error).__name__).rstrip(".")
    match error:
        case httpx.ProxyError():
            return f"can't be reached through the proxy: {error}. Check the PROXY setting."
        case httpx.ConnectTimeout():
            return "doesn't answer the connection attempt. Check the URL and the firewalls on the way."
        case TimeoutError() | httpx.TimeoutException():
            return "doesn't answer in time. It may be busy or restarting."
        case httpx.ConnectError():
            return f"can't be reached: {text}. Check the URL and the network."
        case _:
            return f"closed the connection before the answer was complete: {text}."


def _describe_certificate_error(error: ssl.SSLCertVerificationError, name: str) -> str:
    setting = f"BRIDGE_VCENTERS__{name.upper()}__CA_FILE"
    if error.verify_code in _HOSTNAME_MISMATCH:
        return (
            f"has a certificate for another host name ({error.verify_message}). "
            "Use the certificate's host name in the URL."
        )
    if error.verify_code in _NOT_TRUSTED:
        return (
            f"has a certificate that isn't trusted ({error.verify_message}). "
            f"Put the certificate of the CA that signed it into {setting}; "
            "vCenter offers its own at /certs/download.zip."
        )
    if error.verify_code in _OUT_OF_DATE:
        return (
            f"has a certificate that isn't valid now ({error.verify_message}). "
            "Renew it, or correct this machine's clock."
        )
    return f"has a certificate that can't be accepted ({error.verify_message}). Check {setting}."


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and everything that led to it, outermost first."""
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
