"""TLS as a client: accept the same certificates on every Python, and say why one is refused."""

from __future__ import annotations

import ssl
from pathlib import Path

_MAY_SIGN = "the authority's basicConstraints must say CA:TRUE, and its keyUsage, if there is one, keyCertSign"
# OpenSSL's codes (X509_V_ERR_…) of refusals because of an extension, and what it must say.
_EXTENSIONS = {
    24: _MAY_SIGN,
    25: "the extension basicConstraints of an authority allows fewer authorities below it",
    26: "the extension extendedKeyUsage, if there is one, must contain serverAuth, and keyUsage fit it",
    32: "the authority's extension keyUsage must contain keyCertSign",
    34: "the certificate has a critical extension that OpenSSL doesn't know",
    47: "the extension nameConstraints of an authority excludes the name",
    48: "the extension nameConstraints of an authority excludes the name",
    79: _MAY_SIGN,
}


def create_client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return what verifies a server's certificate and name by `ca_file`, without one by the system's authorities.

    Raises OSError and ValueError if the file can't be used.
    """
    context = ssl.create_default_context(cafile=ca_file)
    # Python 3.13 began to refuse certificates without some extensions of RFC 5280, such as the authority's keyUsage.
    # vCenter's own authority and many private ones leave them out.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    # It also began to trust whatever the file contains, be it the server's own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def explain_refusal(error: ssl.SSLCertVerificationError) -> str:
    """Return OpenSSL's reason, with the extension that it is about if it is about one."""
    extension = _EXTENSIONS.get(error.verify_code)
    return f"{error.verify_message}: {extension}" if extension else error.verify_message
