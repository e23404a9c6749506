"""The certificate of the web server, which is read again when its files change."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from ..logs import FailureLog

log = structlog.get_logger(__name__)


class ServerCertificate:
    """A certificate and its key, as PEM files without a passphrase."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._version: object = None
        self._context: ssl.SSLContext | None = None
        self._failures = FailureLog(log, "certificate_unreadable", "certificate_readable_again")

    def context(self) -> ssl.SSLContext:
        """Return the TLS of a new connection. While the files don't fit (they are being replaced), return the last.

        It costs two stats. Raises OSError or SSLError if there is no last one.
        """
        try:
            version = [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in (file.stat() for file in self._files)]
            if self._context is None or version != self._version:
                self._context, self._version = self._load(), version
        except OSError as error:  # an SSLError too
            if self._context is None:
                raise
            self._failures.report_failure(files=[str(file) for file in self._files], reason=str(error))
        else:
            self._failures.report_recovery()
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files, password="")
        context.set_alpn_protocols(["http/1.1"])
        return context
