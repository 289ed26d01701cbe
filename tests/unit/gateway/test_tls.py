"""The certificate in use, and what a reload may and may not change. Handshakes go through memory."""

from __future__ import annotations

import datetime
import ssl
import time
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.tls import ServerTLS, tls_warnings
from tests.harness.certificates import CertificateAuthority, common_name

DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority()


@pytest.fixture
def cert(tmp_path: Path) -> Path:
    return tmp_path / "cert.pem"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key.pem"


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "127.0.0.1") -> ssl.SSLObject:
    """Return the client's end after a handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    return ends[0]


def whom(tls: ServerTLS, client: ssl.SSLContext, name: str | None = "127.0.0.1") -> str:
    return common_name(shake(tls.context, client, name).getpeercert(binary_form=True))


class TestHandshake:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_modern_versions_with_forward_secrecy(self, authority, cert, key, version):
        authority.issue(cert, key, name="one")
        client = authority.client_context()
        client.minimum_version = client.maximum_version = version
        done = shake(ServerTLS(cert, key).context, client)
        cipher = done.cipher()
        assert cipher is not None
        assert cipher[0].startswith(("ECDHE-", "TLS_"))

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
    def test_old_versions_are_refused(self, authority, cert, key):
        authority.issue(cert, key, name="one")
        client = authority.client_context()
        client.set_ciphers("DEFAULT@SECLEVEL=0")
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            shake(ServerTLS(cert, key).context, client)

    def test_ciphers_without_forward_secrecy_are_refused(self, authority, cert, key):
        authority.issue(cert, key, name="one", is_rsa=True)
        client = authority.client_context()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers("AES128-GCM-SHA256")
        with pytest.raises(ssl.SSLError):
            shake(ServerTLS(cert, key).context, client)


class TestReload:
    @pytest.mark.parametrize("name", ["127.0.0.1", None])
    def test_connections_that_come_after_it_are_met_with_the_new_certificate(
        self, authority, cert, key, name
    ):
        authority.issue(cert, key, name="old", is_rsa=True)
        client = authority.client_context()
        client.check_hostname = name is not None
        tls = ServerTLS(cert, key)
        assert whom(tls, client, name) == "old"
        authority.issue(cert, key, name="new")  # of another kind, too
        assert whom(tls, client, name) == "old", "nobody said reload"
        tls.reload()
        assert whom(tls, client, name) == "new"
        authority.issue(cert, key, name="newest")
        tls.reload()
        assert whom(tls, client, name) == "newest"

    def test_a_key_of_another_certificate_changes_nothing(self, authority, cert, key, tmp_path):
        authority.issue(cert, key, name="old")
        tls = ServerTLS(cert, key)
        expires_at = tls.expires_at
        authority.issue(cert, tmp_path / "other.key", name="new", lifetime=2 * DAY)
        with pytest.raises(ConfigError, match="are no certificate and its key: key values mismatch"):
            tls.reload()
        assert whom(tls, authority.client_context()) == "old"
        assert tls.expires_at == expires_at

    @pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
    def test_no_certificate_changes_nothing(self, authority, cert, key, text):
        authority.issue(cert, key, name="old")
        tls = ServerTLS(cert, key)
        cert.write_text(text)
        with pytest.raises(ConfigError, match=r"server\.tls_cert"):
            tls.reload()
        cert.unlink()
        with pytest.raises(ConfigError, match="no such file"):
            tls.reload()
        assert whom(tls, authority.client_context()) == "old"

    def test_a_key_that_became_readable_by_everybody_changes_nothing(self, authority, cert, key):
        authority.issue(cert, key, name="old")
        tls = ServerTLS(cert, key)
        authority.issue(cert, key, name="new")
        key.chmod(0o644)
        with pytest.raises(ConfigError, match="run: chmod o= "):
            tls.reload()
        assert whom(tls, authority.client_context()) == "old"


def test_an_encrypted_key_is_refused_and_nobody_is_asked(authority, cert, key):
    authority.issue(cert, key, name="one", password=b"hunter2")
    with pytest.raises(ConfigError, match="is encrypted"):
        ServerTLS(cert, key)


class TestWarnings:
    def test_none_without_tls_or_with_time_left(self, authority, cert, key):
        authority.issue(cert, key, name="one", lifetime=15 * DAY)
        assert tls_warnings(None, now_s=time.time()) == []
        assert tls_warnings(ServerTLS(cert, key), now_s=time.time()) == []

    @pytest.mark.parametrize(
        ("lifetime", "text"), [(2 * DAY, "expires in 2 days"), (-DAY, "server.tls_cert expired")]
    )
    def test_the_end_is_near(self, authority, cert, key, lifetime, text):
        authority.issue(cert, key, name="one", lifetime=lifetime)
        (warning,) = tls_warnings(ServerTLS(cert, key), now_s=time.time())
        assert text in warning
