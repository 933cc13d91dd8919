"""The certificate authority of a simulated cluster, and its nodes' certificates."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from agentlab.base.process import run

DAYS = 3650
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


async def make_authority(folder: Path, cluster: str) -> str:
    """Make the cluster's authority in `folder`; its certificate as PEM text.  Raises ProgramFailed."""
    await run([
        "openssl", "req", "-x509", *_CURVE, "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"),
        "-days", str(DAYS), "-subj", f"/CN=Proxmox Virtual Environment/OU={cluster}/O=PVE Cluster Manager CA",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    ])  # fmt: skip
    return (folder / "ca.pem").read_text()


async def make_certificate(folder: Path, node: str, expired: bool = False) -> Path:
    """Make a node's key and certificate, signed by the authority; the file with both.  Raises ProgramFailed."""
    names = f"IP:127.0.0.1,DNS:localhost,DNS:{node},DNS:{node}.sim.test"
    request, key, signed = (folder / f"{node}.{kind}" for kind in ("csr", "key", "crt"))
    extensions = folder / f"{node}.ext"
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n")
    subject = f"/OU=PVE Cluster Node/O=Proxmox Virtual Environment/CN={node}.sim.test"
    await run(["openssl", "req", *_CURVE, "-keyout", str(key), "-out", str(request), "-subj", subject])
    if expired:
        await _sign_expired(folder, request, signed, extensions)
    else:
        await run([
            "openssl", "x509", "-req", "-in", str(request), "-CA", str(folder / "ca.pem"), "-CAkey",
            str(folder / "ca.key"), "-CAcreateserial", "-out", str(signed), "-extfile", str(extensions),
            "-days", str(DAYS),
        ])  # fmt: skip
    both = folder / f"{node}.pem"
    both.write_text(key.read_text() + signed.read_text())
    return both


def fingerprint(file: Path) -> str:
    """The SHA-256 of the certificate in a file, as Proxmox VE shows it."""
    text = file.read_text()
    found = text[text.index("-----BEGIN CERTIFICATE") :]
    raw = hashlib.sha256(ssl.PEM_cert_to_DER_cert(found)).hexdigest().upper()
    return ":".join(raw[at : at + 2] for at in range(0, len(raw), 2))


async def _sign_expired(folder: Path, request: Path, signed: Path, extensions: Path) -> None:
    """`openssl x509` cannot sign for a time in the past; `openssl ca` can, with files of its own."""
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("77\n")
    config = folder / "ca.cnf"
    config.write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index.txt\nserial={folder}/serial\nnew_certs_dir={folder}\n"
        "default_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n"
    )
    await run([
        "openssl", "ca", "-batch", "-config", str(config), "-cert", str(folder / "ca.pem"), "-keyfile",
        str(folder / "ca.key"), "-in", str(request), "-out", str(signed), "-extfile", str(extensions), "-notext",
        "-startdate", "20200101000000Z", "-enddate", "20200201000000Z",
    ])  # fmt: skip
