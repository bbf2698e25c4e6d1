"""Nothing but what `hubplugin run` made, licences and notices ever leaves this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from publish_helpers import document, finished

from hubplugin.errors import HubError
from hubplugin.hub.publishing import publish

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"


def linked(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        outside = folder.parent / "outside.txt"
        outside.write_text("not for others")
        (folder / name).symlink_to(outside)

    return make


def folder_link(folder: Path) -> None:
    outside = folder.parent / "templates"
    outside.mkdir()
    (outside / "a.jinja").write_text("not for others")
    (folder / "additional_chat_templates").symlink_to(outside)


def written(name: str, text: str = "not for others") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return make


@pytest.mark.parametrize(
    "stray",
    [
        *map(written, (".env", ".netrc", "id_rsa", "credentials.json", "notes.txt", "train.py", "pytorch_model.bin")),
        # names that a pattern of the allow-list lets through
        *map(written, ("tokenizer_secrets.json", "license.pem", "model-extra.safetensors", "merges.txt", "a.jinja")),
        written("additional_chat_templates/mine.jinja"),
        written("LICENSE.txt", KEY),
        written("NOTICE", f"hf_{'a1B2' * 9}"),
        *map(linked, ("LICENSE.md", "vocab.json", "stray")),
        folder_link,
    ],
)
def test_a_stray_file_stops_everything(
    hub: HfApi, tmp_path: Path, pico_folder: Path, stray: Callable[[Path], None]
) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", pico_folder, asked)
    stray(out / "Int8")
    for refused in (lambda: publish.publish(asked, out), lambda: list(publish.dry_run(asked, out))):
        with pytest.raises(HubError, match="nothing was published") as error:
            refused()
        assert error.value.where.startswith(str(out / "Int8")) and "a1B2" not in error.value.lines()
    assert not hub.repo_exists("local/pico-Int4") and not hub.repo_exists("local/pico-Int8")


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_the_token_in_use_never_leaves(hub: HfApi, tmp_path: Path, pico_folder: Path, name: str) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", pico_folder, asked)
    (out / "Int4" / "LICENSE.md").write_text("MIT\n")  # by hand, as it may be
    published = publish.publish(asked, out)
    assert all(pushed.changed for pushed in published)
    target = "LICENSE.md" if name == "LICENSE" else name
    (out / "Int4" / target).write_text(f"---\nlicense: mit\n---\nexport HF_TOKEN={hub.token}\n")
    with pytest.raises(HubError, match="the access token that is in use") as refused:
        publish.publish(asked, out)
    assert str(hub.token) not in refused.value.lines()
