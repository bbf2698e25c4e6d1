"""`run --only --revision`: a part of a manifest's variants, of the base at a commit."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from test_cli import MANIFEST, TEXT
from typer.testing import CliRunner

from hubplugin import report
from hubplugin.errors import ManifestError
from hubplugin.manifest.reading import loading
from hubplugin.manifest.reading.narrowing import narrowed
from hubplugin.verbs import app

TWO = MANIFEST + "  Int8:\n    - {method: gptq, bits: 8, group_size: 32}\n"


def manifest(place: Path, model: str = "./base", text: str = TWO) -> Path:
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    (place / "m.yaml").write_text(text.replace("./base", model), encoding="utf-8")
    return place / "m.yaml"


def test_what_is_not_named_is_left_out_and_the_text_stays(tmp_path: Path) -> None:
    whole = loading.load(manifest(tmp_path, "owner/name@v1"))
    part = narrowed(whole, ["Int8"], "abc")
    assert list(part.manifest.variants) == ["Int8"] and part.manifest.model == "owner/name@abc"
    assert (part.text, part.sha256) == (whole.text, whole.sha256)
    assert narrowed(whole) == whole
    assert list(narrowed(whole, ["Int8", "Int4"]).manifest.variants) == ["Int4", "Int8"]


def test_a_name_that_no_variant_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="did you mean `Int8`") as refused:
        narrowed(loading.load(manifest(tmp_path)), ["Int88"])
    assert refused.value.where.endswith("Int88")


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(ManifestError, match="has no revisions"):
        narrowed(loading.load(manifest(tmp_path)), revision="main")


def test_a_snapshot_in_the_clients_cache_is_named_by_its_repo(tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    cached.mkdir(parents=True)
    assert narrowed(loading.load(manifest(tmp_path, str(cached))), revision="b").manifest.model == "owner/name@b"


def test_a_run_makes_one_variant_of_the_base_at_a_commit(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    first = hub.model_info("local/pico").sha
    hub.upload_file(path_or_fileobj=b"later", path_in_repo="NOTICE", repo_id="local/pico")
    written = manifest(tmp_path, "local/pico")
    words = ["run", str(written), "--out", str(tmp_path / "out"), "--only", "Int8", "--revision", str(first)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    made = report.read(tmp_path / "out" / "Int8")
    assert (made.base.revision, made.base.repo) == (first, "local/pico")
    assert not (tmp_path / "out" / "Int4").exists() and not (tmp_path / "out" / "Int8" / "NOTICE").exists()
    refused = CliRunner().invoke(app, [*words[:-4], "--only", "Int16"])
    assert isinstance(refused.exception, ManifestError)
