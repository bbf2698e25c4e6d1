"""Keys to sign with, written as people have them."""

import base64
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

SIGNED = ", sign: {key: key.pem}"  # of publish_helpers.document
PASSWORD = "correct horse"
# DER of the names of two curves: one that keys may be of, and one that the cryptography package does not know
PRIME256V1, PRIME239V1 = (bytes.fromhex(f"06082a8648ce3d0301{last}") for last in ("07", "04"))


def write_key(place: Path, name: str = "key", password: str | None = None, kind: str = "p256") -> Path:
    """A private key as NAME.pem, and its public one as NAME.pub, whose path is returned."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (place / f"{name}.pem").write_bytes(private)
    (place / f"{name}.pem").chmod(0o600)
    public, form = key.public_key(), serialization.PublicFormat.SubjectPublicKeyInfo
    (place / f"{name}.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    return place / f"{name}.pub"


def rename_curve(pem: Path) -> None:
    """Make a key, private or public, one of prime239v1, by name."""
    first, *middle, last = pem.read_text().splitlines()
    named = base64.b64decode("".join(middle)).replace(PRIME256V1, PRIME239V1)
    pem.write_text("\n".join((first, base64.b64encode(named).decode(), last, "")))
