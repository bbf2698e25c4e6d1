"""Reads signatures in the format of OpenSSF's model-signing: what they say of which files, and whose key made them.

What a signature lists is read without the library: a Sigstore bundle, in it a DSSE envelope, in it an in-toto statement
(https://github.com/sigstore/model-transparency). Knows JSON and keys; hashes no file.
"""

import base64
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubplugin.errors import CheckpointError, FormatError, HubError, PlanError, one_line

PREDICATE = "https://model_signing/signature/v1.0"
# what the format's own tools leave out, whatever a signature says
OF_GIT = (".git", ".gitattributes", ".gitignore", ".github", ".cache")
FIX = "publish it again, or pull it again"


@dataclass(frozen=True)
class Signed:
    """What a signature says."""

    digests: Mapping[str, str]  # sha256 of files, by their paths in the repo
    ignored: tuple[str, ...]  # files and folders that it says nothing of
    key: str | None  # sha256 of the public key as PEM; None: signed in another way than by a key

    def leaves_out(self, name: str) -> bool:
        """Whether it says nothing of a file on purpose."""
        return any(name == one or name.startswith(f"{one}/") for one in (*self.ignored, *OF_GIT))


@contextlib.contextmanager
def installed(where: str) -> Iterator[None]:
    """Raise PlanError where the block finds the library of signatures missing."""
    try:
        yield
    except ImportError as error:
        what = f"signatures need a package that is not installed: {error.name}"
        raise PlanError(where, what, "pip install 'hubplugin[sign]'") from error


def read(path: Path) -> Signed:
    """What a signature lists, unchecked by any key.

    Raises CheckpointError for one that is damaged, FormatError for one that lists other things than files by sha256.
    """
    try:
        bundle = json.loads(path.read_text("utf-8"))
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        if payload["predicateType"] != PREDICATE:
            raise FormatError(path.name, f"{payload['predicateType']!r} is another kind of statement", FIX)
        return _signed(bundle, payload, path.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(path.name, "is no signature of model-signing, or is damaged", FIX) from error


def _signed(bundle: dict[str, Any], payload: dict[str, Any], where: str) -> Signed:
    listed, how = payload["predicate"]["resources"], payload["predicate"]["serialization"]
    if how["method"] != "files" or how["hash_type"] != "sha256":
        raise FormatError(where, f"lists {how['method']} by {how['hash_type']}, not files by sha256", FIX)
    digests = {str(one["name"]): str(one["digest"]) for one in listed}
    (whole,) = payload["subject"]
    together = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in listed)).hexdigest()
    if whole["digest"]["sha256"] != together or len(digests) != len(listed):
        raise ValueError("its digests are not those that it sums up")
    key = bundle["verificationMaterial"].get("publicKey")
    return Signed(digests, tuple(map(str, how.get("ignore_paths", ()))), key and key["hint"])


def check_public_key(path: Path) -> None:
    """Raise HubError where a file is no public key that signatures can be held against."""
    with installed("--public-key"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from model_signing import verifying
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=path)
    except OSError as error:
        raise HubError(str(path), f"cannot be read: {error.strerror}", "give the file of a public key") from error
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        what = "is no public key of an elliptic curve as PEM"
        raise HubError(str(path), what, "make it from the private key: openssl ec -in KEY -pubout") from error


def why_not_by(public: Path, signature: Path) -> str:
    """Why a signature was not made with the private key of a public one; empty where it was."""
    with installed("--public-key"):
        from cryptography.exceptions import InvalidSignature

        # its public functions hash all files of a repo, those too that were not downloaded
        from model_signing._signing import sign_ec_key, sign_sigstore_pb
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints warnings
            sign_ec_key.Verifier(public).verify(sign_sigstore_pb.Signature.read(signature))
    except InvalidSignature:
        return "it was changed since, or made with another key"
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        return one_line(error)
    return ""
