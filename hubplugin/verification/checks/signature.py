"""Checks of model.sig: that it lists the files as they are, and that the publisher's key made it."""

from collections.abc import Iterator

from hubplugin.checkpoint.model_folder import PAPERS, PULLED, SIGNATURE, allowed
from hubplugin.hub import signatures
from hubplugin.manifest.reading import loading
from hubplugin.variant_folder import MANIFEST
from hubplugin.verification.outcome import Finding, compared, failed, passed, unchecked
from hubplugin.verification.subject import Subject

SHORT = 12  # letters of a digest that a line shows


def is_there(subject: Subject) -> Iterator[Finding]:
    """There is a signature where the manifest in the folder asks for one, or a key that it should be by is given."""
    if SIGNATURE in subject.files.names:
        return
    if subject.public_key:
        yield failed(f"there is no {SIGNATURE}, so nothing is by the key of {subject.public_key}")
    elif MANIFEST in subject.files.names:
        publish = loading.load(subject.folder / MANIFEST).manifest.publish
        if publish and publish.sign:
            yield failed(f"there is no {SIGNATURE}, and the manifest asks for it; `hubplugin publish` makes it")


def files_as_signed(subject: Subject) -> Iterator[Finding]:
    """Every file is the one that was signed. This says nothing of who signed it."""
    names = subject.files.names
    if SIGNATURE not in names:
        return
    signed, equal = signatures.read(subject.folder / SIGNATURE), 0
    for name, wanted in signed.digests.items():
        if name not in names:  # nothing but the model's own files is opened, whatever a signature names
            yield compared(f"sha256 {wanted[:SHORT]}…", "no such file", name)
        elif not (subject.folder / name).is_file():
            yield unchecked("was not downloaded: the model does not need it", name)
        elif (found := subject.sha256(name)) != wanted:
            yield compared(f"sha256 {wanted[:SHORT]}…", f"sha256 {found[:SHORT]}…", name)
        else:
            equal += 1
    left = [name for name in names if name not in signed.digests and name != SIGNATURE]
    read = [name for name in left if allowed(name, PULLED) and not allowed(name, PAPERS) and signed.leaves_out(name)]
    if read:
        yield failed(f"{len(read)} files that loaders read are left out of the signature, first: {read[0]}")
    if equal == len(signed.digests):
        out = sorted(name for name in left if signed.leaves_out(name) and not name.startswith("."))
        yield passed(f"{equal} files have the sha256 that was signed; left out: {', '.join(out) or 'none'}")
    if added := [name for name in left if not signed.leaves_out(name)]:
        yield failed(f"{len(added)} files are not signed, first: {added[0]}")


def made_with_key(subject: Subject) -> Iterator[Finding]:
    """The publisher's key made it."""
    if SIGNATURE not in subject.files.names:
        return
    signed = signatures.read(subject.folder / SIGNATURE)
    whose = f"a key with the sha256 {signed.key[:SHORT]}…" if signed.key else "no key (a certificate, or an identity)"
    if subject.public_key is None:
        yield unchecked(f"it names {whose}; give the publisher's public key with --public-key")
    elif why := signatures.why_not_by(subject.public_key, subject.folder / SIGNATURE):
        yield failed(f"it is not by the key of {subject.public_key}: {why}")
    else:
        yield passed(f"by {whose}")
