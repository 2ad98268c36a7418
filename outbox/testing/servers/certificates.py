"""A certificate authority of a test's own: certificates for 127.0.0.1, valid or expired, and strangers."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from outbox.testing.servers.failure import ServerUnavailable

CONFIGURATION = """\
[ca]
default_ca = here
[here]
database = {directory}/index
serial = {directory}/serial
new_certs_dir = {directory}
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM."""

    key: Path
    chain: Path


class Authority:
    """Signs with openssl, in a directory of its own, which must exist."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory / name
        self._directory.mkdir()
        self._made = 0
        (self._directory / "index").touch()
        (self._directory / "serial").write_text("01\n")
        (self._directory / "openssl.cnf").write_text(CONFIGURATION.format(directory=self._directory))
        self._key, self.certificate = self._directory / "ca.key", self._directory / "ca.pem"
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", str(self._key), "-out", str(self.certificate)),
        )

    def issue(self, *, expired: bool = False) -> Certificate:
        """A server's certificate for 127.0.0.1, of today or of a month that is over."""
        self._made += 1
        key, request, chain = (self._directory / f"{self._made}.{end}" for end in ("key", "csr", "chain"))
        self._openssl(
            *("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN=server-{self._made}"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(request)),
        )
        when = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z") if expired else ("-days", "2")
        self._openssl(
            *("ca", "-batch", "-notext", "-config", str(self._directory / "openssl.cnf"), *when),
            *("-cert", str(self.certificate), "-keyfile", str(self._key)),
            *("-in", str(request), "-out", str(chain)),
        )
        return Certificate(key, chain)

    def _openssl(self, *arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
        except FileNotFoundError:
            raise ServerUnavailable(
                "kafka", "openssl is not on this machine (Debian: apt install openssl)"
            ) from None
