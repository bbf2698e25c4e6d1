"""What publishing would refuse is said before any work; what cannot be asked is a note and no refusal."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from publish_helpers import document

from hubplugin import licences
from hubplugin.errors import HubError
from hubplugin.evaluation.cards import card_metadata
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import hub_card, publish
from hubplugin.hub.snapshots import Known
from hubplugin.licences import Derivatives
from hubplugin.localhub.users import add_user
from hubplugin.report import Base


@pytest.fixture
def base(tmp_path: Path, pico_folder: Path) -> Path:
    return Path(shutil.copytree(pico_folder, tmp_path / "base"))


def preflight(place: Path, front: str = "license: mit", **how: Any) -> list[str]:
    """Of the local folder `base`, with this metadata in its card."""
    (place / "base" / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    asked = document(place, model="./base", **how)
    return publish.preflight(asked, snapshots.peek(asked.manifest.model, asked.folder))


# what cannot be asked


def test_without_a_network_it_is_said_that_nothing_was_asked(
    hub: HfApi, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (note,) = preflight(base.parent)
    assert "HF_HUB_OFFLINE" in note and "not looked at" in note


@pytest.fixture(params=[429, 503])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A Hub that answers nothing but this status."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def _fail(self) -> None:
            self.send_response(request.param)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = _fail

        def log_message(self, *_: Any) -> None:
            """No talk."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_any")
        yield request.param
        server.shutdown()


def test_a_hub_that_fails_refuses_nothing(failing: int, base: Path) -> None:
    (note,) = preflight(base.parent)
    assert str(failing) in note and "not looked at" in note


def test_whether_a_base_is_private_is_not_known_offline(
    hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = f"local/pico@{snapshots.pull('local/pico', tmp_path).sha}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = document(tmp_path, model=pinned, private=False)
    (note,) = publish.preflight(asked, snapshots.peek(pinned, tmp_path))
    assert "whether local/pico is private" in note


# the token


def test_a_token_that_may_only_read_is_named(hub: HfApi, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = add_user(base.parent / "hub", "reader", "read")
    monkeypatch.setenv("HF_TOKEN", reader)
    with pytest.raises(HubError, match="may only read") as refused:
        preflight(base.parent, owner="reader")
    assert reader not in refused.value.lines()


def test_a_repo_that_the_token_may_not_write_to_is_named(
    hub: HfApi, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo("local/base-Int4", private=False)
    monkeypatch.setenv("HF_TOKEN", add_user(base.parent / "hub", "stranger"))
    with pytest.raises(HubError, match="may not do that"):
        preflight(base.parent, owner="local", private=False)


def test_a_wrong_token_is_named_and_never_shown(hub: HfApi, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(HubError, match="does not accept this token") as refused:
        preflight(base.parent)
    assert "wrongwrong" not in refused.value.lines()


# the repos


@pytest.mark.parametrize("variant", ["Int4", "Int8"])
def test_a_repo_with_a_model_of_others_is_refused_before_any_work(hub: HfApi, base: Path, variant: str) -> None:
    hub.create_repo(f"local/base-{variant}", private=True)
    hub.upload_file(path_or_fileobj=b"x", path_in_repo="model.safetensors", repo_id=f"local/base-{variant}")
    with pytest.raises(HubError, match="did not publish"):
        preflight(base.parent)


# licences and cards


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("license: tongyi-qianwen", "accept"),
        ("license: fair-noncommercial-research-license", "accept"),
        ("license: Llama 3.1 Community License", "accept"),
        ("license: CC_BY_ND_4.0", "forbids"),
        ("license: Creative Commons Attribution No Derivatives 4.0", "forbids"),
        ("license: other\nlicense_name: cc-by-nd-3.0", "forbids"),
    ],
)
def test_licences_that_bind_are_known_in_every_spelling(hub: HfApi, base: Path, front: str, said: str) -> None:
    with pytest.raises(HubError, match=said):
        preflight(base.parent, front)
    if said == "accept":
        preflight(base.parent, front, more=", accept_license: true")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Apache License 2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("BSD 3-Clause License", "bsd-3-clause"),
        ("GPLv3", "gpl-3.0"),
    ],
)
def test_a_licence_in_another_spelling_is_published_under_the_hubs_id(
    hub: HfApi, base: Path, written: str, meant: str
) -> None:
    (note,) = preflight(base.parent, f"license: {written}")
    assert note == f"the Hub knows no licence {written!r}: cards say `license: {meant}`"
    assert card_metadata.inherited(Known(repo="me/base", sha=None, on_hub=True, licence=written)) == {"license": meant}


def test_a_licence_that_the_hub_does_not_know_is_other_with_its_name(hub: HfApi, base: Path) -> None:
    (note,) = preflight(base.parent, "license: Beerware Licence 42", more=", accept_license: true")
    assert "`license: other`, `license_name: beerware-licence-42`" in note


@pytest.mark.parametrize("licence", ["MIT-0", "Apache-2.0 WITH LLVM-exception", "gpl-2.0-or-later"])
def test_a_licence_that_is_only_similar_is_not_guessed(licence: str) -> None:
    assert licences.same_licence(licence) is None
    assert licences.derivatives(licence) == {Derivatives.DUTIES}


def test_every_id_of_the_hub_is_its_own_spelling() -> None:
    assert {name: licences.same_licence(name) for name in licences.LICENCE_IDS} == {
        name: name for name in licences.LICENCE_IDS
    }


@pytest.mark.parametrize(
    ("languages", "left_out"),
    [("[English]", "'English'"), ("[de, Deutsch, EN]", "'Deutsch', 'EN'"), ("french", "'french'")],
)
def test_languages_without_a_code_are_named(hub: HfApi, base: Path, languages: str, left_out: str) -> None:
    (note,) = preflight(base.parent, f"license: mit\nlanguage: {languages}")
    assert f"left out of cards: language {left_out}" in note


@pytest.mark.parametrize("language", ["no", "[no, en]"])
def test_norwegian_is_a_language(hub: HfApi, base: Path, language: str) -> None:
    assert preflight(base.parent, f"license: mit\nlanguage: {language}") == []
    assert snapshots.pull(str(base), base).languages[0] == "no"


@pytest.mark.parametrize("front", ["license: Mit", "language: English", "license: {a: 1}"])
def test_what_the_hub_refuses_of_a_card_is_said_in_its_words(hub: HfApi, front: str) -> None:
    with pytest.raises(HubError, match="the Hub refuses the card") as refused:
        hub_card.check(f"---\n{front}\n---\n", "local/base")
    assert refused.value.where == "local/base: README.md"
    hub_card.check("---\nlicense: mit\n---\n", "local/base")


def test_what_cards_inherit_is_what_the_hub_accepts(hub: HfApi, base: Path) -> None:
    (base / "README.md").write_text("---\nlicense: Apache License 2.0\nlanguage: [English, de, no]\n---\n")
    known = snapshots.peek(str(base), base)
    hub_card.check(hub_card.inherited(known), "local/base")
    assert "- de\n- 'no'" in hub_card.inherited(known)


def test_publishing_checks_the_name_of_a_licence_too() -> None:
    named = Base(
        repo="a/b", revision=None, on_hub=True, architecture="L", model_type="llama",
        licence="other", licence_name="some-model-nd-1.0",
    )  # fmt: skip
    with pytest.raises(HubError, match="forbids"):
        publish.check_licence(named, accepted=True)
