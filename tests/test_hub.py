"""Pull, peek, push and collect against the embedded Hub, and every way in which they can fail."""

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pico
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import _http as client_http
from safetensors.torch import save_file
from test_gate_ties import with_head

from hubplugin.checkpoint import model_folder
from hubplugin.errors import CheckpointError, HubError
from hubplugin.evaluation.gate.left_behind import UNKNOWN, left_behind
from hubplugin.hub import client, snapshots
from hubplugin.hub.publishing import publish, push
from hubplugin.localhub.server import Running, start
from hubplugin.localhub.users import add_user
from hubplugin.report import Base


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with start(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def server(running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Running:
    """The hub, as HF_ENDPOINT, HF_TOKEN and a fresh HF_HOME of this process."""
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", running.token)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return running


@pytest.fixture
def api(server: Running) -> HfApi:
    """The server's owner."""
    return HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def model(pico_folder: Path, tmp_path: Path) -> Path:
    """A pico model that a test may change."""
    return Path(shutil.copytree(pico_folder, tmp_path / "model"))


def upload(api: HfApi, name: str, folder: Path, **how: Any) -> str:
    repo = f"local/{name}"
    api.create_repo(repo, **how)
    api.upload_folder(repo_id=repo, folder_path=folder)
    return repo


def refused(call: Callable[[], object], kind: type[HubError] | type[CheckpointError] = HubError) -> str:
    """The lines the user would read."""
    with pytest.raises(kind) as caught:
        call()
    return caught.value.lines()


def files_of(api: HfApi, repo: str) -> set[str]:
    return {name for name in api.list_repo_files(repo) if name != ".gitattributes"}


def commits_of(api: HfApi, repo: str) -> int:
    return len(api.list_repo_commits(repo))


# -- pull from a folder


def test_a_local_folder_is_used_where_it_lies(model: Path) -> None:
    found = snapshots.pull("./model", model.parent)
    assert (found.path, found.repo, found.sha, found.on_hub) == (model, "model", None, False)
    assert (found.licence, found.languages, found.gated) == ("apache-2.0", ("en",), False)


def test_a_path_that_is_no_folder_is_not_looked_up_on_a_hub(tmp_path: Path) -> None:
    assert "there is no folder" in refused(lambda: snapshots.pull("./nowhere", tmp_path))


@pytest.mark.parametrize(
    ("gone", "said"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "safetensors")],
)
def test_a_folder_without_one_of_its_parts_is_refused(model: Path, gone: str, said: str) -> None:
    (model / gone).unlink()
    assert said in refused(lambda: snapshots.pull(str(model), Path()))
    assert said in refused(lambda: snapshots.peek(str(model), Path()))


def test_pickled_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickles" in refused(lambda: snapshots.pull(str(model), Path()))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_needs_remote_code_is_refused(model: Path, name: str) -> None:
    values = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**values, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}))
    assert "remote code" in refused(lambda: snapshots.pull(str(model), Path()))
    assert "remote code" in refused(lambda: snapshots.peek(str(model), Path()))


def test_code_that_transformers_ships_under_the_same_name_is_not_needed(model: Path) -> None:
    values = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "configuration_x.LlamaConfig", "AutoModelForCausalLM": "modeling_x.LlamaForCausalLM"}
    (model / "config.json").write_text(json.dumps({**values, "auto_map": own}))
    assert snapshots.pull(str(model), Path()).path == model
    assert snapshots.peek(str(model), Path()).config["auto_map"] == own


@pytest.mark.parametrize("content", ["{", "[1]", "\xff\xfe"])
def test_a_broken_config_is_refused(model: Path, content: str) -> None:
    (model / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refused(lambda: snapshots.pull(str(model), Path()))


@pytest.mark.parametrize(
    "card", ["no front matter", "---\n[broken\n---\n", "---\nlicense: {a: [1]}\n---\n", "---\n- x\n---"]
)
def test_a_card_without_usable_metadata_gives_no_licence(model: Path, card: str) -> None:
    (model / "README.md").write_text(card)
    found = snapshots.pull(str(model), Path())
    assert (found.licence, found.languages) == (None, ())


# -- pull from a hub


def test_a_pull_brings_the_allowed_files_of_the_pinned_commit_and_nothing_else(
    server: Running, api: HfApi, model: Path, tmp_path: Path
) -> None:
    wanted = {path.name for path in model.iterdir()}
    for extra in ("pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "original/tokenizer.model"):
        (model / extra).parent.mkdir(exist_ok=True)
        (model / extra).write_bytes(b"unwanted")
    repo = upload(api, "pull", model)
    first = api.model_info(repo).sha
    api.upload_file(path_or_fileobj=b"changed", path_in_repo="LICENSE", repo_id=repo)
    old, new = snapshots.pull(f"{repo}@{first}", tmp_path), snapshots.pull(repo, tmp_path)
    assert (old.sha, old.repo, old.on_hub, old.licence) == (first, repo, True, "apache-2.0")
    assert new.sha == api.model_info(repo).sha != first
    assert {path.name for path in old.path.iterdir()} == wanted
    assert (old.path / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (old.path / "LICENSE").read_bytes() != b"changed" == (new.path / "LICENSE").read_bytes()
    assert old.path.is_relative_to(tmp_path / "hf")  # HF_HOME


def test_a_missing_repo_and_a_missing_revision_are_told_apart(server: Running, api: HfApi, model: Path) -> None:
    repo = upload(api, "there", model)
    assert "no such repo" in refused(lambda: snapshots.pull("local/nothing-here", Path()))
    assert "no such repo" in refused(lambda: snapshots.peek("local/nothing-here", Path()))
    assert "this revision of it does not" in refused(lambda: snapshots.pull(f"{repo}@v9", Path()))


def test_an_impossible_repo_id_is_a_clear_error(server: Running) -> None:
    assert "where: not/a/repo" in refused(lambda: snapshots.pull("not/a/repo", Path()))


def test_a_wrong_token_is_named_and_never_shown(
    server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = upload(api, "token", model)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    said = refused(lambda: snapshots.pull(repo, Path()))
    assert "does not accept this token" in said and "wrongwrong" not in said


def test_a_private_repo_looks_missing_to_others(
    server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = upload(api, "secret", model, private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "private and this token cannot see it" in refused(lambda: snapshots.pull(repo, Path()))


def test_a_gated_repo_says_how_to_ask_for_access(
    server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = upload(api, "gated", model)
    api.update_repo_settings(repo, gated="manual")
    assert snapshots.pull(repo, Path()).gated
    monkeypatch.setenv("HF_TOKEN", add_user(server.root, "stranger"))
    monkeypatch.setenv("HF_HOME", str(model.parent / "elsewhere"))
    for call in (snapshots.pull, snapshots.peek):
        said = refused(lambda call=call: call(repo, Path()))
        assert "gated" in said and "ask for access" in said and f"{server.url}/{repo}" in said


def test_a_card_that_asks_for_access_counts_as_gated_in_a_copy(model: Path) -> None:
    (model / "README.md").write_text("---\nextra_gated_prompt: agree\n---\n")
    assert snapshots.pull(str(model), Path()).gated


def test_a_disk_that_is_too_small_is_noticed_before_the_download(
    server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repo = upload(api, "space", model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    said = refused(lambda: snapshots.pull(repo, Path()))
    assert "MB free" in said and "HF_HOME" in said
    assert not (tmp_path / "hf" / "hub").exists()


def test_a_disk_that_fills_up_meanwhile_is_named(
    server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = upload(api, "full", model)

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(HfApi, "snapshot_download", full)
    assert "is full" in refused(lambda: snapshots.pull(repo, Path()))


def test_a_hub_that_does_not_answer_is_named(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        said = refused(lambda: snapshots.pull("local/any", Path()))
    assert f"cannot reach {address}" in said and "HF_HUB_OFFLINE=1" in said


def test_offline_a_whole_cached_model_is_used_and_nothing_else(
    server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = upload(api, "offline-commit", model)
    online = snapshots.pull(repo, Path())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert snapshots.pull(f"{repo}@{online.sha}", Path()) == online
    assert snapshots.peek(f"{repo}@{online.sha}", Path()).sha == online.sha
    said = refused(lambda: snapshots.pull("local/never-pulled", Path()))
    assert "HF_HUB_OFFLINE is set" in said
    (online.path / "model.safetensors").unlink()
    refused(lambda: snapshots.pull(f"{repo}@{online.sha}", Path()))


@pytest.mark.parametrize("named", ["", "@main", "@feat/x", "@v1.0"])
def test_offline_a_branch_means_the_commit_that_was_pulled_last(
    named: str, server: Running, api: HfApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = upload(api, "offline" + named.replace("@", "-").replace("/", "-"), model)
    api.create_branch(repo, branch="feat/x")
    api.create_tag(repo, tag="v1.0")
    online = snapshots.pull(f"{repo}{named}", Path())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert snapshots.pull(f"{repo}{named}", Path()) == online
    assert snapshots.peek(f"{repo}{named}", Path()).sha == online.sha


def test_files_that_are_not_pulled_are_known(server: Running, api: HfApi, model: Path) -> None:
    for name in ("pytorch_model.bin", "onnx/model.onnx", "onnx/deep/x", "original/consolidated.safetensors", "a.py"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("x")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "notes.md").write_text("x")
    pulled = snapshots.pull(upload(api, "extras", model), Path())
    found = {entry.file: entry.reason for entry in left_behind(pulled.path, pulled.not_pulled)}
    assert found == {
        ".gitattributes": "belongs to the repo, not to the model",
        "README.md": "the variant has a card of its own",
        "a.py": "code, which is never run",
        "additional_chat_templates/notes.md": UNKNOWN,
        "onnx/": "weights of another framework",
        "original/": "weights in another format",
        "pytorch_model.bin": "weights as pickles, which can run code",
    }


# -- peek


@pytest.fixture
def traffic(server: Running) -> Iterator[list[tuple[str, int]]]:
    """(path, bytes of the body) of every answer the client got."""
    seen: list[tuple[str, int]] = []

    def count(response: httpx2.Response) -> None:
        length = 0 if response.request.method == "HEAD" else int(response.headers.get("content-length", 0))
        seen.append((response.url.path, length))

    def factory() -> httpx2.Client:
        made = client_http.default_client_factory()
        made.event_hooks = {**made.event_hooks, "response": [count]}
        return made

    huggingface_hub.set_client_factory(factory)
    yield seen
    huggingface_hub.set_client_factory(client_http.default_client_factory)


def test_a_peek_reads_headers_and_no_weights(
    server: Running, api: HfApi, model: Path, traffic: list[tuple[str, int]], tmp_path: Path
) -> None:
    large = {"a": torch.zeros(4096, 1024), "b": torch.zeros(7, 5, dtype=torch.bfloat16)}  # 16 MB
    save_file(large, model / "model.safetensors")
    repo = upload(api, "peek", model)
    traffic.clear()
    seen = snapshots.peek(repo, Path())
    assert {name: (header.dtype, header.shape) for name, header in seen.tensors.items()} == {
        "a": ("F32", (4096, 1024)),
        "b": ("BF16", (7, 5)),
    }
    assert (seen.sha, seen.on_hub, seen.config["model_type"]) == (api.model_info(repo).sha, True, "llama")
    assert any(path.endswith("model.safetensors") for path, _ in traffic)
    assert sum(length for _, length in traffic) < 250_000
    assert not list((tmp_path / "hf").rglob("model.safetensors"))


def shard(model: Path) -> list[str]:
    """Split the folder's weights into one file per layer, with an index."""
    from safetensors.torch import load_file

    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    halves = [dict(list(weights.items())[:5]), dict(list(weights.items())[5:])]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, model / name)
    weight_map = {tensor: name for name, half in zip(names, halves, strict=True) for tensor in half}
    (model / model_folder.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


@pytest.mark.parametrize("shards", [False, True])
def test_a_peek_says_the_same_about_a_repo_and_a_folder(server: Running, api: HfApi, model: Path, shards: bool) -> None:
    expected = {name: (dtype, tuple(shape)) for name, (dtype, shape) in pico.headers(model).items()}
    if shards:
        shard(model)
    far = snapshots.peek(upload(api, f"peek-{shards}", model), Path())
    near = snapshots.peek(str(model), Path())
    assert far.tensors == near.tensors and far.config == near.config
    assert {name: (header.dtype, header.shape) for name, header in near.tensors.items()} == expected


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(("change", "own"), [("other", True), ("same", False), ("signed zero", False)])
def test_a_peek_sees_a_head_of_its_own(
    server: Running, api: HfApi, tmp_path: Path, change: str, own: bool, shards: bool
) -> None:
    base = with_head(tmp_path / "m", change)
    if shards:
        shard(base)
    seen = snapshots.peek(upload(api, f"head-{change.split()[0]}-{shards}", base), Path())
    assert seen.config["tie_word_embeddings"] is not own
    assert seen.config == snapshots.peek(str(base), Path()).config


def test_damaged_shards_are_noticed_from_their_headers(model: Path) -> None:
    first, second = shard(model)
    whole = (model / first).read_bytes()
    for damage in (whole[:-1], whole[:4], whole + b"x", b"\xff" * 64, b""):
        (model / first).write_bytes(damage)
        assert first in refused(lambda: snapshots.peek(str(model), Path()), CheckpointError)
    (model / first).write_bytes(whole)
    (model / second).unlink()
    assert "is missing" in refused(lambda: snapshots.peek(str(model), Path()), CheckpointError)


@pytest.mark.parametrize("index", ["{", '{"weight_map": {}}', '{"weight_map": {"a": "../../secret.safetensors"}}'])
def test_an_index_that_is_broken_or_leads_elsewhere_is_refused(model: Path, index: str) -> None:
    shard(model)
    (model / model_folder.INDEX).write_text(index)
    assert model_folder.INDEX in refused(lambda: snapshots.peek(str(model), Path()), CheckpointError)


# -- push


@pytest.fixture
def made(model: Path) -> Path:
    """A folder as the pipeline leaves it."""
    for name in ("report.json", "manifest.yaml"):
        (model / name).write_text("{}\n")
    return model


def test_a_push_is_one_commit_and_a_second_one_is_none(server: Running, api: HfApi, made: Path) -> None:
    done = push.push(made, "local/push", private=True)
    before = commits_of(api, "local/push")
    assert done.changed and done.url == f"{server.url}/local/push"
    assert done.commit == api.model_info("local/push").sha
    assert files_of(api, "local/push") == {path.name for path in made.iterdir()}
    assert api.model_info("local/push").private
    again = push.push(made, "local/push", private=True)
    assert not again.changed and again.commit == done.commit
    assert commits_of(api, "local/push") == before
    assert (snapshots.pull("local/push", Path()).path / "model.safetensors").read_bytes() == (
        made / "model.safetensors"
    ).read_bytes()


def test_stale_shards_go_in_the_same_commit_and_foreign_files_stay(server: Running, api: HfApi, made: Path) -> None:
    single = (made / "model.safetensors").read_bytes()
    shards = set(shard(made))
    push.push(made, "local/shards", private=True)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="picture.png", repo_id="local/shards")
    before = commits_of(api, "local/shards")
    for name in (*shards, model_folder.INDEX):
        (made / name).unlink()
    (made / "model.safetensors").write_bytes(single)
    assert push.push(made, "local/shards", private=True).changed
    assert commits_of(api, "local/shards") == before + 1
    assert files_of(api, "local/shards") == {path.name for path in made.iterdir()} | {"picture.png"}


@pytest.mark.parametrize("name", [".env", "weights.bin", "modeling_x.py", "LICENSE.link", "nested"])
def test_nothing_outside_the_allow_list_is_ever_published(server: Running, api: HfApi, made: Path, name: str) -> None:
    if name == "nested":
        (made / name).mkdir()
    elif name.endswith(".link"):
        (made / name).symlink_to("/etc/hostname")
    else:
        (made / name).write_text("secret")
    said = refused(lambda: push.push(made, f"local/refused-{name.strip('.')}", private=True))
    assert name in said and "nothing was published" in said
    assert not api.repo_exists(f"local/refused-{name.strip('.')}")


def test_a_read_only_token_publishes_nothing(
    server: Running, api: HfApi, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = add_user(server.root, "reader", "read")
    monkeypatch.setenv("HF_TOKEN", reader)
    said = refused(lambda: push.push(made, "reader/new", private=True))
    assert "403" in said and reader not in said
    assert not api.repo_exists("reader/new")


def test_the_repo_of_somebody_else_stays_as_it_is(
    server: Running, api: HfApi, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = HfApi(endpoint=server.url, token=add_user(server.root, "owner"))
    theirs.create_repo("owner/theirs")
    before = theirs.model_info("owner/theirs").sha
    assert "403" in refused(lambda: push.push(made, "owner/theirs", private=False))
    assert "403" in refused(lambda: push.push(made, "owner/not-there", private=False))
    assert theirs.model_info("owner/theirs").sha == before


def test_without_a_token_nothing_is_published(
    server: Running, api: HfApi, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert "HF_TOKEN" in refused(lambda: push.push(made, "local/anonymous", private=True))
    assert not api.repo_exists("local/anonymous")


def test_a_branch_that_moved_meanwhile_is_not_overwritten(
    server: Running, api: HfApi, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.push(made, "local/moved", private=True)
    (made / "LICENSE").write_text("changed here")

    def somebody_is_faster(*_: Any, **__: Any) -> None:
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo="NOTICE", repo_id="local/moved")

    monkeypatch.setattr(HfApi, "auth_check", somebody_is_faster)
    assert "moved" in refused(lambda: push.push(made, "local/moved", private=True))
    assert "NOTICE" in files_of(api, "local/moved")
    assert (snapshots.pull("local/moved", Path()).path / "LICENSE").read_text() != "changed here"


def test_a_private_variant_does_not_go_into_a_public_repo(server: Running, api: HfApi, made: Path) -> None:
    api.create_repo("local/public", private=False)
    assert "is public" in refused(lambda: push.push(made, "local/public", private=True))
    assert files_of(api, "local/public") == set()


def test_a_model_that_was_not_published_by_us_is_not_overwritten(server: Running, api: HfApi, made: Path) -> None:
    api.create_repo("local/precious")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="model.safetensors", repo_id="local/precious")
    assert "did not publish" in refused(lambda: push.push(made, "local/precious", private=False))
    assert files_of(api, "local/precious") == {"model.safetensors"}


def test_the_gate_of_the_base_is_closed_before_the_weights_arrive(
    server: Running, api: HfApi, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("update_repo_settings", "create_commit"):
        original = getattr(HfApi, name)

        def noted(self: HfApi, *args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            order.append(_name)
            return _original(self, *args, **more)

        monkeypatch.setattr(HfApi, name, noted)
    push.push(made, "local/closed", private=False, gated=True)
    assert order == ["update_repo_settings", "create_commit"]
    assert api.model_info("local/closed").gated == "auto"


def test_an_unprotected_endpoint_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for address, warned in (("http://hub.example.com", True), ("http://127.0.0.1:1", False), ("https://x.org", False)):
        monkeypatch.setenv("HF_ENDPOINT", address + "/")
        client.connect()
        said = capsys.readouterr().err
        assert address in said and ("warning" in said) == warned


def test_an_endpoint_with_a_password_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://me:geheim@hub.example.com")
    assert "geheim" not in refused(lambda: snapshots.pull("a/b", Path()))


# -- collections and licences


def test_a_collection_grows_once_however_often_it_is_made(server: Running, api: HfApi, made: Path) -> None:
    repos = ["local/collected-1", "local/collected-2"]
    for repo in repos:
        api.create_repo(repo)
    first = push.collect("Compressed", "local", {repos[0]: "2.60 times smaller"}, private=False)
    second = push.collect("Compressed", "local", dict.fromkeys(repos, "note"), private=False)
    assert first == second and first.startswith(f"{server.url}/collections/")
    items = api.get_collection(first.removeprefix(f"{server.url}/collections/")).items
    assert [item.item_id for item in items] == repos


def base(licence: str | None, gated: bool = False) -> Base:
    return Base(
        repo="a/b", revision=None, on_hub=True, architecture="L", model_type="llama", licence=licence, gated=gated
    )


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", None, "cc-by-4.0", "bsd-3-clause"])
def test_free_licences_need_no_acceptance(licence: str | None) -> None:
    publish.check_licence(base(licence), accepted=False)


@pytest.mark.parametrize(
    ("licence", "gated"),
    [
        ("llama3.1", False),
        ("gemma", False),
        ("other", False),
        ("cc-by-nc-4.0", False),
        ("Llama2", False),
        ("mit, other", False),
        ("bigscience-bloom-rail-1.0", False),
        ("openrail++", False),
        ("apache-2.0", True),
    ],
)
def test_duties_and_gates_must_be_accepted_by_the_manifest(licence: str, gated: bool) -> None:
    assert "accept_license" in refused(lambda: publish.check_licence(base(licence, gated), accepted=False))
    publish.check_licence(base(licence, gated), accepted=True)


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "cc-by-nc-nd-4.0"])
def test_no_derivatives_means_no_publishing_even_if_accepted(licence: str) -> None:
    assert "no-derivatives" in refused(lambda: publish.check_licence(base(licence), accepted=True))
