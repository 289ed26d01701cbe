"""The gateway's own certificate: how connections are met with it, and how it is changed while they live.

A reload makes a whole new context and only then puts it in the place of the old one, so a bad file, or a key
that is not the certificate's, changes nothing. Connections that exist keep what they were made with.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509

from gateway.config import Config
from gateway.config.files import exposure
from gateway.errors import ConfigError

EXPIRES_SOON_S: Final = 14 * 24 * 3600

# TLS 1.2 only with forward secrecy and authenticated encryption; TLS 1.3 has nothing else.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class ServerTLS:
    """The certificate chain and key of ``server.tls_cert`` and ``server.tls_key``.

    Attributes:
        context: What the server listens with, from the first to the last.

    Raises:
        ConfigError: They cannot be used; the text names the key and what to do.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._current = self.context = _load(cert, key)
        self.expires_at = _expires_at(cert)
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Meet connections that come from now on with what the files hold now.

        Raises:
            ConfigError: They cannot be used; the old certificate stays.
        """
        loaded, expires_at = _load(self._cert, self._key), _expires_at(self._cert)
        self._current, self.expires_at = loaded, expires_at

    def _choose(self, connection: ssl.SSLObject, _name: str | None, context: ssl.SSLContext) -> None:
        # OpenSSL asks at each handshake, whether or not the client names a server.
        if self._current is not context:
            connection.context = self._current


def server_tls(config: Config) -> ServerTLS | None:
    """Return the certificate of ``config``; None: it has none, and the gateway speaks plain HTTP.

    Raises:
        ConfigError: As ``ServerTLS``.
    """
    cert, key = config.server.tls_cert, config.server.tls_key
    return ServerTLS(cert, key) if cert is not None and key is not None else None


def tls_warnings(tls: ServerTLS | None, *, now_s: float) -> Sequence[str]:
    """Return a sentence if the certificate is over, or soon will be."""
    if tls is None or tls.expires_at - now_s > EXPIRES_SOON_S:
        return []
    days = (tls.expires_at - now_s) / 86400
    when = "expired" if days <= 0 else f"expires in {days:.0f} days"
    return [f"server.tls_cert {when}; put a new one in its place and send the gateway SIGHUP"]


def _load(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        exposed = exposure(key)
        if exposed is not None:
            raise ConfigError([f"server.tls_key: {exposed}"])
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:  # also an SSLError is an OSError
        reason = (getattr(error, "reason", None) or error.strerror or str(error)).replace("_", " ").lower()
        raise ConfigError(
            [f"server.tls_cert, server.tls_key: {cert} and {key} are no certificate and its key: {reason}"]
        ) from error
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and the start would hang.
    raise ConfigError(["server.tls_key: is encrypted, and nobody is asked for its password; decrypt it"])


def _expires_at(cert: Path) -> float:
    """Return when the first certificate of ``cert`` is over, in seconds; OpenSSL read it before."""
    try:
        return x509.load_pem_x509_certificates(cert.read_bytes())[0].not_valid_after_utc.timestamp()
    except (OSError, ValueError) as error:
        raise ConfigError([f"server.tls_cert: {cert} is not a certificate chain: {error}"]) from error
