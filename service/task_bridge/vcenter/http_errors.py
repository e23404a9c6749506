"""Describe failed requests to a vCenter in sentences that say what to do. Knows the exceptions of httpx and ssl."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import httpx

from ..tls import explain_refusal
from .policy import VCenterConfig

# OpenSSL's codes (X509_V_ERR_…) by what the operator has to do.
_HOSTNAME_MISMATCH = {62, 64}
_NOT_TRUSTED = {2, 18, 19, 20, 21}
_OUT_OF_DATE = {9, 10}


def describe_http_error(error: Exception, settings: VCenterConfig, *, at_proxy: bool = False) -> str:
    """Return a sentence about what failed, and one about how to fix it. `at_proxy`: it failed on the way to the proxy.

    The outermost exception says what failed. What led to it can be anything that was handled meanwhile: over TLS every
    read begins with an ssl.SSLWantReadError.
    """
    if at_proxy:
        what = f"can't be reached through the proxy: {error or type(error).__name__}. Check the PROXY setting."
    else:
        what = _describe_outermost(error, settings)
    return f"vCenter {settings.name} ({settings.url}) {what}"


def is_certificate_error(error: BaseException) -> bool:
    """True if no connection was made because vCenter's certificate isn't accepted."""
    return isinstance(error, httpx.ConnectError) and any(
        isinstance(cause, ssl.SSLCertVerificationError) for cause in _iterate_causes(error)
    )


def _describe_outermost(error: Exception, settings: VCenterConfig) -> str:
    text = (str(error) or type(error).__name__).rstrip(".")
    match error:
        case httpx.ProxyError():
            return f"can't be reached through the proxy: {error}. Check the PROXY setting."
        case httpx.ConnectTimeout():
            return "doesn't answer the connection attempt. Check the URL and the firewalls on the way."
        case TimeoutError() | httpx.TimeoutException():
            return "doesn't answer in time. It may be busy or restarting."
        case httpx.ConnectError():
            return _describe_connect_error(error, settings.name) or (
                f"can't be reached: {text}. Check the URL and the network."
            )
        case httpx.RemoteProtocolError() if text.startswith("illegal status line"):
            return "doesn't answer in HTTP. Check the URL's scheme and port."
        case httpx.RemoteProtocolError() if settings.url.startswith("http:"):
            return (
                f"closed the connection before the answer was complete: {text}. "
                "If it speaks TLS at this port, begin the URL with https."
            )
        case _:
            return f"closed the connection before the answer was complete: {text}."


def _describe_connect_error(error: httpx.ConnectError, name: str) -> str | None:
    """Return what the exceptions behind the error say, None if they say nothing more."""
    for cause in _iterate_causes(error):
        match cause:
            case ssl.SSLWantReadError() | ssl.SSLWantWriteError():
                continue  # no failure: TLS waited for the network
            case ssl.SSLCertVerificationError():
                return _describe_certificate_error(cause, name)
            case ssl.SSLEOFError() | ConnectionResetError():
                return "closed the connection before TLS was set up. Check the URL's port. vCenter may be restarting."
            case ssl.SSLError():
                return f"doesn't speak TLS as expected ({cause.reason or cause}). Check the URL's scheme and port."
            case socket.gaierror():
                return "has a host name that doesn't resolve. Check the URL and this machine's DNS."
            case ConnectionRefusedError():
                return "refuses the connection. Check the URL's port, and that vCenter is running."
    return None


def _describe_certificate_error(error: ssl.SSLCertVerificationError, name: str) -> str:
    setting = f"BRIDGE_VCENTERS__{name.upper()}__CA_FILE"
    if error.verify_code in _HOSTNAME_MISMATCH:
        return (
            f"has a certificate for another host name ({explain_refusal(error)}). "
            "Use the certificate's host name in the URL."
        )
    if error.verify_code in _NOT_TRUSTED:
        return (
            f"has a certificate that isn't trusted ({explain_refusal(error)}). "
            f"Put the certificate of the CA that signed it into {setting}; "
            "vCenter offers its own at /certs/download.zip."
        )
    if error.verify_code in _OUT_OF_DATE:
        return (
            f"has a certificate that isn't valid now ({explain_refusal(error)}). "
            "Renew it, or correct this machine's clock."
        )
    return f"has a certificate that can't be accepted ({explain_refusal(error)}). Check {setting}."


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
