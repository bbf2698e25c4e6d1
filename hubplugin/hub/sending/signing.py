"""Signs a folder that is to be published, in the format of OpenSSF's model-signing, with the key of `publish.sign`.

The card is left out: its readers may edit it, and its numbers stand in report.json. Knows keys and files; no repo. The
key and its password go to the library alone.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hubplugin.checkpoint.model_folder import SIGNATURE
from hubplugin.disk import write_atomically
from hubplugin.errors import HubPluginError, PlanError
from hubplugin.hub import signatures
from hubplugin.manifest.schema import Document
from hubplugin.progress import progress

PASSWORD = "HUBPLUGIN_SIGNING_PASSWORD"
# what the signature says nothing of: beside the card, itself, and what the Hub's client writes into a download
UNSIGNED = ("README.md", SIGNATURE, ".cache")
MAKE_ONE = "make one: openssl ecparam -name prime256v1 -genkey -noout -out signing.pem"


@dataclass(frozen=True)
class Signer:
    """A private key, ready to sign."""

    library: Any  # model_signing.signing.Config
    public: bytes  # the public key, as PEM

    def sign(self, folder: Path) -> None:
        """Write the signature of a folder's files."""
        import model_signing

        # paths are taken as relative to the folder; others would be ignored themselves, and without a word
        hashing = model_signing.hashing.Config().set_ignored_paths(paths=UNSIGNED)
        with TemporaryDirectory() as place:
            made = Path(place) / SIGNATURE
            self.library.set_hashing_config(hashing).sign(folder, made)
            write_atomically(folder / SIGNATURE, made.read_text("utf-8"))

    def has_signed(self, folder: Path) -> bool:
        """Whether the folder's signature is by this key, and of the files as they are, with no more left out."""
        import model_signing
        from cryptography.exceptions import InvalidSignature

        with TemporaryDirectory() as place:
            public = Path(place) / "public.pem"
            public.write_bytes(self.public)
            verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
            try:
                # the library leaves out whatever a signature says it does, weights too
                if not set(signatures.read(folder / SIGNATURE).ignored) <= {*UNSIGNED, *signatures.OF_GIT}:
                    return False
                verifier.verify(folder, folder / SIGNATURE)
            except (HubPluginError, InvalidSignature, ValueError, LookupError, TypeError, AttributeError, OSError):
                return False
        return True


def signer(document: Document) -> Signer | None:
    """The key that a manifest names; None where it has nothing signed. Raises PlanError for a key that cannot sign."""
    publish = document.manifest.publish
    if publish is None or publish.sign is None:
        return None
    where = f"{document.path}: publish.sign.key"
    path = document.folder / Path(publish.sign.key).expanduser()
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}"
        raise PlanError(where, what, f"give a path relative to the manifest, or {MAKE_ONE}") from None
    if mode & stat.S_IROTH:
        progress(f"publish warning: everybody on this machine may read {path}, a private key; chmod 600 it")
    with signatures.installed(where):
        return Signer(*_opened(path, content, where))


def _opened(path: Path, content: bytes, where: str) -> tuple[Any, bytes]:
    """The library with a key, and the public key as PEM. No error repeats anything of key and password."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from model_signing import signing

    try:
        key, password = _loaded(path, content, where)
        # bytes: what the library passes on a password to takes no text, whatever its annotation says
        library = signing.Config().use_elliptic_key_signer(private_key=path, password=password)  # type: ignore[arg-type]
    except (ValueError, AttributeError, UnsupportedAlgorithm):  # AttributeError: of a key that is no elliptic curve's
        what = f"{path} is no private key of an elliptic curve (P-256, P-384 or P-521) as PEM"
        raise PlanError(where, what, MAKE_ONE) from None
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return library, key.public_key().public_bytes(serialization.Encoding.PEM, form)


def _loaded(path: Path, content: bytes, where: str) -> tuple[Any, bytes | None]:
    """A private key of any kind, and the password that it needed."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(content, None), None
    except TypeError:  # it is encrypted
        password = _password(path, where)
    try:
        return load_pem_private_key(content, password), password
    except ValueError:
        what, fix = f"{PASSWORD} is not the password of {path}", f"set {PASSWORD} to the key's password"
        raise PlanError(where, what, fix) from None


def _password(path: Path, where: str) -> bytes:
    given = os.environ.get(PASSWORD)
    if not given:
        raise PlanError(where, f"{path} is encrypted, and {PASSWORD} is not set", f"set {PASSWORD} to its password")
    return given.encode()


def sign(folder: Path, signer: Signer | None) -> None:
    """Have a folder signed, or have no signature in it. One that fits stays: each one made anew would be another."""
    if signer is None:
        (folder / SIGNATURE).unlink(missing_ok=True)
    elif not signer.has_signed(folder):
        signer.sign(folder)
        progress(f"sign   {folder / SIGNATURE}")


def notes(document: Document) -> list[str]:
    """Before any work: that the key, which publishing needs, is not on this machine. One note, or none."""
    publish = document.manifest.publish
    if publish is None or publish.sign is None or (document.folder / Path(publish.sign.key).expanduser()).is_file():
        return []
    return [f"publish.sign.key: there is no file {publish.sign.key} here, and publishing will need it"]
