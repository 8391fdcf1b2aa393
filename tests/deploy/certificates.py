"""Certificates for localhost."""

import subprocess
from pathlib import Path

from tests.programs import program


def write_certificate(file: Path) -> None:
    """Write a new self-signed certificate and its key, as HAProxy takes them: one after the other."""
    key = file.with_suffix(".key")
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key,
         "-out", file],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + key.read_text())
    file.chmod(0o444)
