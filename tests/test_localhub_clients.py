"""Unmodified official clients against the embedded hub: huggingface_hub, hf, transformers, datasets."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from localhub_helpers import client, hf

from hubplugin import localhub
from hubplugin.localhub.server import Running

TRANSPORTS = pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    """A hub that takes LFS files in several parts."""
    with localhub.start(tmp_path / "hub", part_bytes=400_000) as running:
        yield running


@TRANSPORTS
def test_a_commit_comes_back_as_it_went(hub: Running, tmp_path: Path, xet: bool) -> None:
    client(
        hub,
        tmp_path,
        """
        assert api.whoami()["name"] == "local"
        files = {
            "README.md": b"---\\nlicense: mit\\ntags: [gptq]\\nbase_model: a/b\\n---\\nHi\\n",
            "config.json": b"{}",
            "empty.txt": b"",
            "model.safetensors": os.urandom(1_000_001),
            "deep/er/weights.bin": os.urandom(800_000),
            "deep/\\u00fc \\u4e2d%2F+#?.txt": b"a name to escape",
        }
        api.create_repo("my-org/m", private=True)
        api.create_repo("my-org/m", exist_ok=True)
        before = api.model_info("my-org/m")
        assert before.private and api.list_repo_files("my-org/m") == [".gitattributes"]
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        commit = api.create_commit("my-org/m", operations, commit_message="all", parent_commit=before.sha)
        assert api.whoami()["orgs"][0]["name"] == "my-org"

        files[".gitattributes"] = Path(hf_hub_download("my-org/m", ".gitattributes")).read_bytes()
        folder = Path(snapshot_download("my-org/m"))
        assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
        assert Path(hf_hub_download("my-org/m", "config.json", revision=commit.oid[:10])).read_bytes() == b"{}"
        assert api.verify_repo_checksums("my-org/m").mismatches == []

        info = api.model_info("my-org/m", files_metadata=True)
        assert info.sha == commit.oid and info.card_data.license == "mit"
        assert {"gptq", "license:mit", "base_model:a/b"} <= set(info.tags)
        assert {s.rfilename: s.size for s in info.siblings} == {path: len(data) for path, data in files.items()}
        tree = {item.path: item for item in api.list_repo_tree("my-org/m", recursive=True, expand=True)}
        assert set(tree) == set(files) | {"deep", "deep/er"}
        assert tree.pop(".gitattributes").last_commit.oid == before.sha
        assert all(item.last_commit.oid == commit.oid for item in tree.values())
        assert [item.path for item in api.list_repo_tree("my-org/m", "deep/er")] == ["deep/er/weights.bin"]
        assert api.file_exists("my-org/m", "config.json") and not api.file_exists("my-org/m", "no.json")
        refused(404, RemoteEntryNotFoundError, lambda: list(api.list_repo_tree("my-org/m", "no")))
        refused(404, RevisionNotFoundError, api.model_info, "my-org/m", revision="no")
        assert [m.id for m in api.list_models(author="my-org", filter="gptq")] == ["my-org/m"]
        """,
        xet=xet,
    )


@TRANSPORTS
def test_the_same_files_again_make_no_commit_and_a_stale_parent_is_told(
    hub: Running, tmp_path: Path, xet: bool
) -> None:
    client(
        hub,
        tmp_path,
        """
        api.create_repo("local/m")
        operations = lambda: [CommitOperationAdd("a.txt", b"one"), CommitOperationAdd("w.bin", b"\\0" * 900_000)]
        first = api.model_info("local/m").sha
        second = api.create_commit("local/m", operations(), commit_message="m").oid
        assert api.create_commit("local/m", operations(), commit_message="again").oid == second
        new_file = [CommitOperationAdd("b.txt", b"two")]
        stale = dict(commit_message="m", parent_commit=first)
        error = refused(412, HfHubHTTPError, api.create_commit, "local/m", new_file, **stale)
        assert "The branch was updated" in str(error)
        api.create_commit("local/m", new_file, commit_message="m", parent_commit=second[:8])
        swap = [CommitOperationAdd("a.txt", b"other"), CommitOperationDelete("a.txt")]
        swap += [CommitOperationCopy("w.bin", "c/w.bin")]
        api.create_commit("local/m", swap, commit_message="m")
        assert sorted(api.list_repo_files("local/m")) == [".gitattributes", "a.txt", "b.txt", "c/w.bin", "w.bin"]
        refused(404, RemoteEntryNotFoundError, api.delete_file, "no.txt", "local/m")
        api.delete_folder("c", "local/m")
        Path("folder/sub").mkdir(parents=True)
        Path("folder/sub/x.bin").write_bytes(os.urandom(1_000_000))
        for number in range(30):
            Path(f"folder/{number}.txt").write_text(str(number))
        api.upload_folder(repo_id="local/m", folder_path="folder", delete_patterns="*.txt")
        assert len(api.list_repo_files("local/m")) == 33
        """,
        xet=xet,
    )


def test_branches_tags_and_history(hub: Running, tmp_path: Path) -> None:
    client(
        hub,
        tmp_path,
        """
        api.create_repo("local/d", repo_type="dataset")
        up = lambda text, rev: api.upload_file(
            path_or_fileobj=text, path_in_repo="a.txt", repo_id="local/d", repo_type="dataset", revision=rev,
            commit_message=text.decode())
        up(b"one", "main")
        api.create_branch("local/d", branch="exp/x", repo_type="dataset")
        api.create_branch("local/d", branch="exp/x", repo_type="dataset", exist_ok=True)
        up(b"two", "exp/x")
        up(b"three", "main")
        api.create_tag("local/d", tag="v1.0", revision="exp/x", repo_type="dataset")
        refused(409, HfHubHTTPError, api.create_tag, "local/d", tag="v1.0", repo_type="dataset")
        read = lambda rev: Path(hf_hub_download("local/d", "a.txt", repo_type="dataset", revision=rev)).read_bytes()
        assert [read(rev) for rev in ("main", "refs/heads/main")] == [b"three", b"three"]
        assert [read(rev) for rev in ("exp/x", "v1.0")] == [b"two", b"two"]
        titles = [c.title for c in api.list_repo_commits("local/d", repo_type="dataset")]
        assert titles == ["three", "one", "initial commit"]
        api.delete_branch("local/d", branch="exp/x", repo_type="dataset")
        refused(404, RevisionNotFoundError, api.delete_branch, "local/d", branch="exp/x", repo_type="dataset")
        refused(403, HfHubHTTPError, api.delete_branch, "local/d", branch="main", repo_type="dataset")
        refs = api.list_repo_refs("local/d", repo_type="dataset")
        assert [b.name for b in refs.branches] == ["main"] and [t.name for t in refs.tags] == ["v1.0"]
        assert read("v1.0") == b"two"
        api.delete_tag("local/d", tag="v1.0", repo_type="dataset")
        refused(404, RevisionNotFoundError, api.dataset_info, "local/d", revision="v1.0")
        api.move_repo("local/d", "my-org/e", repo_type="dataset")
        assert not api.repo_exists("local/d", repo_type="dataset")
        assert api.dataset_info("my-org/e").id == "my-org/e"
        api.delete_repo("my-org/e", repo_type="dataset")
        assert not api.repo_exists("my-org/e", repo_type="dataset")
        """,
    )


@TRANSPORTS
def test_pull_requests_of_strangers_are_merged_by_the_owner(hub: Running, tmp_path: Path, xet: bool) -> None:
    other = localhub.add_user(hub.root, "other")
    client(
        hub,
        tmp_path,
        'api.create_repo("local/m"); api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="local/m")',
    )
    client(
        hub,
        tmp_path,
        """
        refused(403, HfHubHTTPError, api.upload_file, path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="local/m")
        weights = os.urandom(900_000)
        operations = [CommitOperationAdd("w.bin", weights), CommitOperationAdd("b.txt", b"b")]
        pr = api.create_commit("local/m", operations, commit_message="weights", create_pr=True)
        assert (pr.pr_num, pr.pr_revision) == (1, "refs/pr/1")
        assert Path(hf_hub_download("local/m", "w.bin", revision="refs/pr/1")).read_bytes() == weights
        api.upload_file(path_or_fileobj=b"c", path_in_repo="b.txt", repo_id="local/m", revision="refs/pr/1")
        assert "w.bin" not in api.list_repo_files("local/m")
        second = api.create_pull_request("local/m", title="second")
        where = dict(path_in_repo="a.txt", repo_id="local/m", revision=second.git_reference)
        api.upload_file(path_or_fileobj=b"theirs", **where)
        refused(403, HfHubHTTPError, api.merge_pull_request, "local/m", 1)
        """,
        token=other,
        xet=xet,
    )
    client(
        hub,
        tmp_path,
        """
        api.upload_file(path_or_fileobj=b"ours", path_in_repo="a.txt", repo_id="local/m")
        assert api.get_discussion_details("local/m", 2).conflicting_files == ["a.txt"]
        refused(409, HfHubHTTPError, api.merge_pull_request, "local/m", 2)
        api.merge_pull_request("local/m", 1)
        details = api.get_discussion_details("local/m", 1)
        assert details.status == "merged" and details.merge_commit_oid == api.model_info("local/m").sha
        assert sorted(api.list_repo_files("local/m")) == [".gitattributes", "a.txt", "b.txt", "w.bin"]
        assert Path(hf_hub_download("local/m", "a.txt")).read_bytes() == b"ours"
        refused(409, HfHubHTTPError, api.merge_pull_request, "local/m", 1)
        api.change_discussion_status("local/m", 2, "closed")
        assert [d.num for d in api.get_repo_discussions("local/m", discussion_status="open")] == []
        assert [r.name for r in api.list_repo_refs("local/m", include_pull_requests=True).pull_requests] == ["1", "2"]
        """,
        xet=xet,
    )


def test_collections_group_repos(hub: Running, tmp_path: Path) -> None:
    client(
        hub,
        tmp_path,
        """
        for name in ("a", "b"):
            api.create_repo(f"local/{name}", private=name == "b")
        collection = api.create_collection("Small & good", namespace="local", description="d")
        assert api.create_collection("Small & good", namespace="local", exists_ok=True).slug == collection.slug
        api.add_collection_item(collection.slug, "local/a", "model", note="3.2x smaller")
        api.add_collection_item(collection.slug, "local/b", "model")
        refused(409, HfHubHTTPError, api.add_collection_item, collection.slug, "local/a", "model")
        assert len(api.add_collection_item(collection.slug, "local/a", "model", exists_ok=True).items) == 2
        refused(404, HfHubHTTPError, api.add_collection_item, collection.slug, "local/no", "model")
        first, second = api.get_collection(collection.slug).items
        assert (first.item_id, first.note, second.note) == ("local/a", "3.2x smaller", None)
        api.update_collection_item(collection.slug, first.item_object_id, note="new", position=1)
        notes = [(i.item_id, i.note) for i in api.get_collection(collection.slug).items]
        assert notes == [("local/b", None), ("local/a", "new")]
        anonymous = HfApi(token=False).get_collection(collection.slug)
        assert [i.item_id for i in anonymous.items] == ["local/a"]
        api.delete_collection_item(collection.slug, second.item_object_id)
        api.update_collection_metadata(collection.slug, private=True)
        assert [c.slug for c in api.list_collections(owner="local")] == [collection.slug]
        assert list(HfApi(token=False).list_collections(owner="local")) == []
        api.delete_collection(collection.slug)
        refused(404, HfHubHTTPError, api.get_collection, collection.slug)
        """,
    )


def test_rights_are_what_the_real_hub_would_say(hub: Running, tmp_path: Path) -> None:
    """Private and gated repos, other users' repos, and read-only, invalid or missing tokens: each has its exception."""
    other = localhub.add_user(hub.root, "other")
    reader = localhub.add_user(hub.root, "reader", role="read")
    client(
        hub,
        tmp_path,
        f"""
        OTHER, READER = {other!r}, {reader!r}
        for name in ("secret", "gated"):
            api.create_repo(f"local/{{name}}", private=name == "secret")
            api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=f"local/{{name}}")
        api.update_repo_settings("local/gated", gated="manual")
        anonymous, other, reader = HfApi(token=False), HfApi(token=OTHER), HfApi(token=READER)

        refused(401, RepositoryNotFoundError, anonymous.model_info, "local/secret")
        refused(404, RepositoryNotFoundError, other.model_info, "local/secret")
        refused(401, RepositoryNotFoundError, anonymous.model_info, "local/no")
        refused(404, RepositoryNotFoundError, other.model_info, "local/no")
        refused(404, RepositoryNotFoundError, api.model_info, "gpt2")
        refused(404, RepositoryNotFoundError, other.hf_hub_download, "local/secret", "a.txt")
        file = dict(path_or_fileobj=b"", path_in_repo="b")
        refused(404, RepositoryNotFoundError, other.upload_file, repo_id="local/secret", **file)
        assert [m.id for m in other.list_models()] == ["local/gated"]

        assert anonymous.model_info("local/gated").gated == "manual"
        refused(401, GatedRepoError, anonymous.hf_hub_download, "local/gated", "a.txt")
        refused(403, GatedRepoError, other.hf_hub_download, "local/gated", "a.txt")
        refused(403, GatedRepoError, other.auth_check, "local/gated")
        api.hf_hub_download("local/gated", "a.txt")
        api.grant_access("local/gated", "other")
        assert [r.username for r in api.list_accepted_access_requests("local/gated")] == ["other"]
        other.auth_check("local/gated")
        other.hf_hub_download("local/gated", "a.txt")

        refused(403, HfHubHTTPError, other.create_repo, "local/theirs")
        refused(403, HfHubHTTPError, other.upload_file, repo_id="local/gated", **file)
        refused(403, HfHubHTTPError, other.auth_check, "local/gated", write=True)
        refused(403, HfHubHTTPError, other.delete_repo, "local/gated")
        refused(403, HfHubHTTPError, other.update_repo_settings, "local/gated", private=True)
        refused(403, HfHubHTTPError, other.create_branch, "local/gated", branch="b")
        refused(403, HfHubHTTPError, reader.create_repo, "reader/m")
        refused(403, HfHubHTTPError, reader.create_collection, "c")
        assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
        refused(401, HfHubHTTPError, HfApi(token="wrong").whoami)
        refused(401, HfHubHTTPError, HfApi(token="wrong").create_repo, "local/m")
        other.create_repo("shared/m")
        refused(403, HfHubHTTPError, api.create_repo, "Shared/n")
        assert api.model_info("LOCAL/Gated").id == "local/gated"
        refused(409, HfHubHTTPError, api.create_repo, "local/GATED")
        """,
    )


def test_headers_of_safetensors_are_read_by_ranges(hub: Running, tmp_path: Path, pico_folder: Path) -> None:
    client(
        hub,
        tmp_path,
        f"""
        api.create_repo("local/m")
        api.upload_folder(repo_id="local/m", folder_path={str(pico_folder)!r})
        safetensors = api.get_safetensors_metadata("local/m")
        assert sum(safetensors.parameter_count.values()) > 0
        from huggingface_hub import HfFileSystem
        with HfFileSystem().open("local/m/config.json") as file:
            assert json.load(file)["model_type"] == "llama"
        """,
    )


def test_the_hf_command_works(hub: Running, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "w.bin").write_bytes(b"\0" * 100_000)
    (tmp_path / "up" / "a.txt").write_text("a")
    assert "local" in hf(hub, tmp_path, "auth", "whoami")
    hf(hub, tmp_path, "repos", "create", "local/cli", "--private")
    hf(hub, tmp_path, "upload", "local/cli", "up", ".")
    hf(hub, tmp_path, "download", "local/cli", "--local-dir", "down")
    assert (tmp_path / "down" / "w.bin").read_bytes() == b"\0" * 100_000
    hf(hub, tmp_path, "repos", "tag", "create", "local/cli", "v1")
    hf(hub, tmp_path, "repos", "branch", "create", "local/cli", "side")
    hf(hub, tmp_path, "repos", "settings", "local/cli", "--gated", "auto")
    hf(hub, tmp_path, "repos", "delete-files", "local/cli", "a.txt")
    hf(hub, tmp_path, "collections", "create", "Mine")
    assert '"local/mine-' in hf(hub, tmp_path, "collections", "ls", "--owner", "local", "--format", "json")
    hf(hub, tmp_path, "models", "info", "local/cli")
    hf(hub, tmp_path, "repos", "delete", "local/cli", "--yes")


def test_transformers_pushes_and_loads(hub: Running, tmp_path: Path, pico_folder: Path) -> None:
    client(
        hub,
        tmp_path,
        f"""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        model = AutoModelForCausalLM.from_pretrained({str(pico_folder)!r})
        tokenizer = AutoTokenizer.from_pretrained({str(pico_folder)!r})
        model.push_to_hub("local/pico", private=True)
        tokenizer.push_to_hub("local/pico")
        assert api.model_info("local/pico").private
        again = AutoModelForCausalLM.from_pretrained("local/pico")
        assert AutoConfig.from_pretrained("local/pico").to_dict()["vocab_size"] == model.config.vocab_size
        before, after = model.state_dict(), again.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert AutoTokenizer.from_pretrained("local/pico")("hello")["input_ids"] == tokenizer("hello")["input_ids"]
        """,
    )


def test_datasets_loads_a_dataset_repo(hub: Running, tmp_path: Path) -> None:
    client(
        hub,
        tmp_path,
        """
        api.create_repo("local/rows", repo_type="dataset")
        rows = "".join(json.dumps({"text": f"row {number}"}) + "\\n" for number in range(20)).encode()
        for split in ("train", "test"):
            where = dict(path_in_repo=f"{split}.jsonl", repo_id="local/rows", repo_type="dataset")
            api.upload_file(path_or_fileobj=rows, **where)
        from datasets import load_dataset
        assert load_dataset("local/rows", split="test")[19]["text"] == "row 19"
        assert next(iter(load_dataset("local/rows", split="train", streaming=True)))["text"] == "row 0"
        """,
    )
