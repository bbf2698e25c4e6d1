"""`publish: {sign: ...}`: what is published is signed, the official tool agrees, and the key stays where it is."""

import base64
import builtins
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import card_helpers
import model_signing
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi
from localhub_helpers import BIN, client_env
from model_signing import _cli, hashing
from publish_helpers import by_hand, document, finished
from signing_helpers import PASSWORD, SIGNED, rename_curve, write_key
from snippet_helpers import blocks

from hubplugin import api, cli
from hubplugin.errors import HubError, HubPluginError, ManifestError, PlanError
from hubplugin.evaluation.cards import card
from hubplugin.hub import signatures
from hubplugin.hub.publishing import publish
from hubplugin.hub.sending import signing
from hubplugin.manifest.schema import Document

REPO = "local/pico-Int4"


@pytest.fixture
def asked(hub: HfApi, tmp_path: Path) -> Document:
    """A manifest that has its variants signed; its key is beside it."""
    write_key(tmp_path)
    return document(tmp_path, more=SIGNED)


@pytest.fixture
def out(asked: Document, tmp_path: Path, pico_folder: Path) -> Path:
    return finished(tmp_path / "out", pico_folder, asked)


def checked(folder: Path, public: Path, *words: str) -> str:
    """What the official tool says of a folder."""
    given = [str(folder), "--signature", str(folder / "model.sig"), "--public_key", str(public)]
    done = CliRunner().invoke(_cli.main, ["verify", "key", *given, *words])
    assert (done.exit_code == 0) == ("Verification succeeded" in done.output), done
    return done.output


def test_the_official_tool_accepts_a_plain_download(asked: Document, out: Path, hub: HfApi, tmp_path: Path) -> None:
    publish.publish(asked, out)
    hub.upload_file(path_or_fileobj=b"# Edited on the Hub\n", path_in_repo="README.md", repo_id=REPO)
    folder = Path(hub.snapshot_download(REPO, local_dir=tmp_path / "download"))
    assert (folder / ".cache").is_dir() and (folder / ".gitattributes").is_file()
    public = tmp_path / "key.pub"
    assert "succeeded" in checked(folder, public)
    assert "succeeded" in checked(
        Path(hub.snapshot_download(REPO, cache_dir=tmp_path / "cache")), public, "--allow_symlinks"
    )  # in the client's cache
    assert "Key mismatch" in checked(folder, write_key(tmp_path, "other"))
    (folder / "model.py").write_text("theirs")
    assert "Extra files found" in checked(folder, public)
    (folder / "model.py").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert "Hash mismatch" in checked(folder, public)
    weights.unlink()
    assert "Missing files" in checked(folder, public)


def test_what_the_card_says_of_signatures_can_be_run(asked: Document, out: Path, hub: HfApi, tmp_path: Path) -> None:
    publish.publish(asked, out)
    text = card.render(card_helpers.report(repo=REPO, signed=True))
    (block,) = [text for _, text in blocks(text) if "model_signing" in text]
    (tmp_path / "key.pub").rename(tmp_path / "publisher.pub")
    download, verify = map(shlex.split, block.splitlines())
    environment = client_env(tmp_path, str(hub.endpoint), str(hub.token))
    subprocess.run([str(BIN / download[0]), *download[1:]], env=environment, cwd=tmp_path, check=True, timeout=120)
    said = subprocess.run(
        [str(BIN / verify[0]), *verify[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "succeeded" in said.stdout
    assert "model_signing" not in card.render(card_helpers.report(repo=REPO))
    on_branch = card.render(card_helpers.report(repo=REPO, signed=True, branch="Int4"))
    assert f"hf download {REPO} --revision Int4 --local-dir" in on_branch


def test_published_twice_nothing_is_sent_and_a_change_is_signed_anew(
    asked: Document, out: Path, hub: HfApi, tmp_path: Path
) -> None:
    first = publish.publish(asked, out)
    signature = (out / "Int4" / "model.sig").read_bytes()
    assert all(pushed.changed for pushed in first)
    assert not any(pushed.changed for pushed in publish.publish(asked, out))
    assert (out / "Int4" / "model.sig").read_bytes() == signature
    (out / "Int4" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Again\n")  # is not signed
    publish.publish(asked, out)
    assert (out / "Int4" / "model.sig").read_bytes() == signature
    (out / "Int4" / "LICENSE.txt").write_text("MIT\n")
    publish.publish(asked, out)
    assert (out / "Int4" / "model.sig").read_bytes() != signature
    folder = Path(hub.snapshot_download(REPO, local_dir=tmp_path / "download"))
    assert "succeeded" in checked(folder, tmp_path / "key.pub")
    another = write_key(tmp_path)  # in place of the first
    assert all(pushed.changed for pushed in publish.publish(asked, out))
    assert "succeeded" in checked(Path(hub.snapshot_download(REPO, local_dir=tmp_path / "third")), another)


def test_a_signature_that_leaves_out_more_than_ours_is_made_anew(
    asked: Document, out: Path, hub: HfApi, tmp_path: Path
) -> None:
    folder, left = out / "Int4", "tokenizer_config.json"
    narrow = hashing.Config().set_ignored_paths(paths=(*signing.UNSIGNED, left))
    key = model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key.pem")
    key.set_hashing_config(narrow).sign(folder, folder / "model.sig")
    (line,) = [
        line for line in api.verify(folder).lines if line.check == "files as signed" and line.outcome == "failed"
    ]
    assert f"1 files that loaders read are left out of the signature, first: {left}" in line.detail
    publish.publish(asked, out)
    download = Path(hub.snapshot_download(REPO, local_dir=tmp_path / "download"))
    assert left in signatures.read(download / "model.sig").digests
    assert "succeeded" in checked(download, tmp_path / "key.pub")


def test_a_dry_run_lists_the_signature_that_is_then_sent(asked: Document, out: Path, hub: HfApi) -> None:
    listed = {change.path: change for change in publish.changes(asked, out) if change.repo == REPO}
    assert listed["model.sig"].state == "new" and not hub.repo_exists(REPO)
    assert listed["model.sig"].bytes == (out / "Int4" / "model.sig").stat().st_size
    publish.publish(asked, out)
    sizes = {one.rfilename: one.size for one in hub.model_info(REPO, files_metadata=True).siblings or ()}
    assert sizes["model.sig"] == listed["model.sig"].bytes


def test_a_manifest_that_no_longer_signs_takes_the_signature_away(
    asked: Document, out: Path, hub: HfApi, tmp_path: Path, pico_folder: Path
) -> None:
    publish.publish(asked, out)
    without = document(tmp_path)
    shutil.copy(out / "Int4" / "model.sig", tmp_path)
    shutil.rmtree(out)
    finished(out, pico_folder, without)
    shutil.copy(tmp_path / "model.sig", out / "Int4")
    publish.publish(without, out)
    assert not hub.file_exists(REPO, "model.sig")


def test_a_signature_that_others_replaced_is_never_left_as_it_is(asked: Document, out: Path, hub: HfApi) -> None:
    publish.publish(asked, out)
    by_hand(hub, REPO, model__sig="{}")
    with pytest.raises(HubError, match=r"others have changed model\.sig"):
        publish.publish(asked, out)
    publish.publish(asked, out, force=True)
    assert Path(hub.hf_hub_download(REPO, "model.sig")).read_bytes() == (out / "Int4" / "model.sig").read_bytes()


def test_a_file_that_stays_as_others_made_it_is_said_not_to_fit(
    asked: Document, out: Path, hub: HfApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.publish(asked, out)
    by_hand(hub, REPO, README__md="---\nlicense: mit\n---\n")
    publish.publish(asked, out)
    assert "does not fit" not in capsys.readouterr().err
    by_hand(hub, REPO, generation_config__json="{}")
    assert not any(pushed.changed for pushed in publish.publish(asked, out))
    assert "model.sig does not fit what others made of generation_config.json" in capsys.readouterr().err
    folder = Path(hub.snapshot_download(REPO, local_dir=tmp_path / "download"))
    assert "Hash mismatch" in checked(folder, tmp_path / "key.pub")


def no_key(place: Path) -> None:
    (place / "key.pem").unlink()


def junk(place: Path) -> None:
    (place / "key.pem").write_text("junk")


def of_rsa(place: Path) -> None:
    write_key(place, kind="rsa")


def public_one(place: Path) -> None:
    shutil.copy(place / "key.pub", place / "key.pem")


def encrypted(place: Path) -> None:
    write_key(place, password=PASSWORD)


def encrypted_of_rsa(place: Path) -> None:
    write_key(place, password=PASSWORD, kind="rsa")


def of_unknown_curve(place: Path) -> None:
    rename_curve(place / "key.pem")


@pytest.mark.parametrize(
    ("spoil", "given", "what", "fix"),
    [
        (no_key, None, "cannot be read: No such file", "openssl ecparam"),
        (junk, None, "is no private key of an elliptic curve", "openssl ecparam"),
        (of_rsa, None, "is no private key of an elliptic curve", "openssl ecparam"),
        (public_one, None, "is no private key of an elliptic curve", "openssl ecparam"),
        (encrypted, None, "is encrypted, and HUBPLUGIN_SIGNING_PASSWORD is not set", "set HUBPLUGIN_SIGNING_PASSWORD"),
        (encrypted, "wrong one", "is not the password of", "set HUBPLUGIN_SIGNING_PASSWORD"),
        (encrypted_of_rsa, PASSWORD, "is no private key of an elliptic curve", "openssl ecparam"),
        (of_unknown_curve, None, "is no private key of an elliptic curve", "openssl ecparam"),
    ],
)
def test_a_key_that_cannot_sign_is_said_before_anything_is_sent(
    spoil: Callable[[Path], None],
    given: str | None,
    what: str,
    fix: str,
    asked: Document,
    out: Path,
    hub: HfApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(tmp_path)
    if given:
        monkeypatch.setenv(signing.PASSWORD, given)
    for refused in (lambda: publish.publish(asked, out), lambda: list(publish.dry_run(asked, out))):
        with pytest.raises(PlanError) as error:
            refused()
        assert what in error.value.what and fix in error.value.fix and "publish.sign.key" in error.value.where
        assert "BEGIN" not in error.value.lines() and "wrong one" not in error.value.lines()
    assert not hub.repo_exists(REPO) and not (out / "Int4" / "model.sig").exists()


def test_a_password_comes_from_the_environment_alone(
    asked: Document,
    out: Path,
    hub: HfApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(signing.PASSWORD, PASSWORD)
    publish.publish(asked, out)  # a key that needs none
    public = write_key(tmp_path, password=PASSWORD)
    publish.publish(asked, out)
    folder = Path(hub.snapshot_download(REPO, local_dir=tmp_path / "download"))
    assert "succeeded" in checked(folder, public)
    told = capsys.readouterr()
    assert PASSWORD not in told.out + told.err
    assert not any(PASSWORD.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())
    with pytest.raises(ManifestError, match="no key here"):
        document(tmp_path, more=", sign: {key: key.pem, password: x}")


def test_the_key_is_never_published(asked: Document, out: Path, hub: HfApi, tmp_path: Path) -> None:
    for name in ("key.pem", "LICENSE.txt"):
        shutil.copy(tmp_path / "key.pem", out / "Int4" / name)
        with pytest.raises(HubError, match="nothing was published"):
            publish.publish(asked, out)
        (out / "Int4" / name).unlink()
    publish.publish(asked, out)
    secret = (tmp_path / "key.pem").read_text().splitlines()[1]
    for repo in (REPO, "local/pico-Int8"):
        assert {"key.pem", "key.pub"}.isdisjoint(hub.list_repo_files(repo))
        files = [
            file
            for file in Path(hub.snapshot_download(repo, cache_dir=tmp_path / "cache")).rglob("*")
            if file.is_file()
        ]
        assert files and not any(secret.encode() in file.read_bytes() for file in files)


def test_a_key_that_everybody_may_read_is_warned_of(
    asked: Document, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list(publish.dry_run(asked, out))
    assert "chmod 600" not in capsys.readouterr().err
    (tmp_path / "key.pem").chmod(0o644)
    list(publish.dry_run(asked, out))
    assert "everybody on this machine may read" in capsys.readouterr().err


def test_a_missing_package_is_said_with_the_command_that_installs_it(
    asked: Document, out: Path, hub: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *given: Any, **more: Any) -> Any:
        if name.split(".")[0] == "model_signing":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(HubPluginError) as error:
        publish.publish(asked, out)
    assert "model_signing" in error.value.what and error.value.fix == "pip install 'hubplugin[sign]'"
    assert not hub.repo_exists(REPO)


def test_a_plan_notes_that_the_key_is_not_here(asked: Document, tmp_path: Path) -> None:
    assert signing.notes(asked) == [] == signing.notes(document(tmp_path))
    no_key(tmp_path)
    (note,) = signing.notes(asked)
    assert "there is no file key.pem here" in note


def verified(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[dict[str, Any]]]:
    """The lines about signatures that the verb prints, by check."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *words, "--json"])
    assert ended.value.code in (0, 1)
    lines = json.loads(capsys.readouterr().out)["lines"]
    checks = ("signature", "files as signed", "signature's key")
    return {check: [line for line in lines if line["check"] == check] for check in checks}


def outcomes(lines: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {check: [line["outcome"] for line in found] for check, found in lines.items() if found}


def test_verify_holds_files_and_key_against_a_signature(
    asked: Document, out: Path, hub: HfApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public, other = str(tmp_path / "key.pub"), str(write_key(tmp_path, "other"))
    publish.publish(asked, out)
    capsys.readouterr()
    lines = verified(capsys, REPO, "--public-key", public)
    assert outcomes(lines) == {"files as signed": ["passed"], "signature's key": ["passed"]}
    lines = verified(capsys, REPO)
    assert outcomes(lines) == {"files as signed": ["passed"], "signature's key": ["not checked"]}
    assert "--public-key" in lines["signature's key"][0]["detail"]
    lines = verified(capsys, REPO, "--public-key", other)
    assert outcomes(lines) == {"files as signed": ["passed"], "signature's key": ["failed"]}

    by_hand(hub, REPO, README__md="# Theirs\n", added__py="pass")
    (line,) = verified(capsys, REPO)["files as signed"][1:]
    assert line["outcome"] == "failed" and line["detail"] == "1 files are not signed, first: added.py"


def in_payload(old: bytes, new: bytes) -> Callable[[Path], object]:
    """Change what a signature lists, and leave the signature itself."""

    def change(folder: Path) -> None:
        bundle = json.loads((folder / "model.sig").read_text())
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        assert old in payload
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(old, new)).decode()
        (folder / "model.sig").write_text(json.dumps(bundle))

    return change


@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "files as signed", "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "files as signed", "no such file"),
        (lambda folder: (folder / "model.sig").write_text("{}"), "files as signed", "is damaged"),
        (lambda folder: (folder / "model.sig").write_bytes(b"\xff\x00"), "files as signed", "is damaged"),
        (lambda folder: (folder / "model.sig").write_text("[" * 100_000), "files as signed", "is damaged"),
        (lambda folder: (folder / "model.sig").unlink(), "signature", "there is no model.sig"),
        (in_payload(b'"tokenizer.json"', b'"../key.pem"'), "files as signed", "../key.pem"),
        (in_payload(b"README.md", b"LICENSE.m"), "signature's key", "it was changed since"),
    ],
)
def test_verify_names_what_is_wrong_with_a_copy(
    spoil: Callable[[Path], object],
    check: str,
    words: str,
    asked: Document,
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish.publish(asked, out)
    (out / "Int4" / "manifest.yaml").write_text(asked.text)
    copy = shutil.copytree(out / "Int4", tmp_path / "copy")
    spoil(copy)
    capsys.readouterr()
    failed = [
        line
        for line in verified(capsys, str(copy), "--public-key", str(tmp_path / "key.pub"))[check]
        if line["outcome"] == "failed"
    ]
    assert any(words in " ".join(map(str, line.values())) for line in failed), failed
    if check == "signature":  # the manifest asks for one, too
        assert outcomes(verified(capsys, str(copy)))["signature"] == ["failed"]


def test_verify_refuses_a_key_that_is_none(
    asked: Document, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_curve(write_key(tmp_path, "unknown"))
    for given, what in (
        (tmp_path / "none", "cannot be read"),
        (tmp_path / "key.pem", "is no public key"),
        (tmp_path / "unknown.pub", "is no public key"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["verify", str(out / "Int4"), "--public-key", str(given)])
        assert ended.value.code == 2 and what in capsys.readouterr().err
