"""Where variants go: branches, tags, pull requests to repos of others, and gates."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fault_helpers import small_folder
from huggingface_hub import HfApi, constants
from publish_helpers import by_hand, document, finished, read

from hubplugin.errors import HubError, ManifestError, PlanError
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish, push
from hubplugin.hub.publishing.targets import Target
from hubplugin.localhub.users import add_user
from hubplugin.manifest.reading import loading
from hubplugin.plan.checks import sources

ONE_REPO = """\
model: local/pico
calibrate: {self: true, samples: 4, sequence_length: 32}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
  Int8:
    - {method: gptq, bits: 8, group_size: 32}
publish: {repo: "local/{model}-compressed", branch: "{variant}"MORE}
"""


def one_repo(place: Path, more: str = ""):
    (place / "m.yaml").write_text(ONE_REPO.replace("MORE", more))
    return loading.load(place / "m.yaml")


def holds(hub: HfApi, repo: str, revision: str, folder: Path) -> bool:
    """Whether a revision holds exactly a folder's files."""
    names = set(hub.list_repo_files(repo, revision=revision)) - {".gitattributes"}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = {name: Path(hub.hf_hub_download(repo, name, revision=revision)).read_bytes() for name in names}
    return found == files


# branches and tags


def test_each_variant_has_a_branch_of_its_own(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = one_repo(tmp_path, ', tag: "{variant}-v1"')
    out = finished(tmp_path / "out", pico_folder, asked)
    (out / "Int8" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Int8\n")
    done = publish.publish(asked, out)
    repo = "local/pico-compressed"
    assert [pushed.url for pushed in done] == [f"{hub.endpoint}/{repo}/tree/{name}" for name in ("Int4", "Int8")]
    assert hub.list_repo_files(repo) == [".gitattributes"], "main stays as it was made"
    for name in ("Int4", "Int8"):
        assert holds(hub, repo, name, out / name) and holds(hub, repo, f"{name}-v1", out / name)
        assert len(hub.list_repo_commits(repo, revision=name)) == 2
    assert not any(pushed.changed for pushed in publish.publish(asked, out))
    assert snapshots.pull(f"{repo}@Int8", tmp_path).sha == done[1].commit


def test_a_branch_has_its_own_edits(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = one_repo(tmp_path)
    out = finished(tmp_path / "out", pico_folder, asked)
    publish.publish(asked, out)
    theirs = [("README.md", b"# Theirs\n")]
    for name, text in theirs:
        hub.upload_file(path_or_fileobj=text, path_in_repo=name, repo_id="local/pico-compressed", revision="Int4")
    by_hand(hub, "local/pico-compressed", README__md="# Which branch is which\n")
    assert not any(pushed.changed for pushed in publish.publish(asked, out))
    hub.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="local/pico-compressed", revision="Int8")
    with pytest.raises(HubError) as refused:
        publish.publish(asked, out)
    assert refused.value.where == "local/pico-compressed@Int8" and "config.json" in refused.value.what
    publish.publish(asked, out, force=True)
    assert holds(hub, "local/pico-compressed", "Int8", out / "Int8")


def test_a_tag_never_moves(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path, more=', tag: "v1.0"')
    out = finished(tmp_path / "out", pico_folder, asked)
    first, _ = publish.publish(asked, out)
    tags = {ref.name: ref.target_commit for ref in hub.list_repo_refs("local/pico-Int4").tags}
    assert tags == {"v1.0": first.commit}
    publish.publish(asked, out)
    by_hand(hub, "local/pico-Int4", README__md="# Theirs\n")
    publish.publish(asked, out)  # sends nothing, so the tag says what it said
    (out / "Int8" / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(HubError, match=r"the tag v1\.0 is at commit") as refused:
        publish.publish(asked, out)
    assert "another publish.tag" in refused.value.fix
    assert "license: mit" not in read(hub, "README.md", "local/pico-Int8")


def test_a_tag_that_a_break_has_left_out_is_made_later(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", pico_folder, asked)
    first, _ = publish.publish(asked, out)
    done = push.commit(push.prepare(out / "Int4", Target("local/pico-Int4", private=True, tag="v1")))
    assert not done.changed
    assert [(ref.name, ref.target_commit) for ref in hub.list_repo_refs("local/pico-Int4").tags] == [
        ("v1", first.commit)
    ]


# pull requests


@pytest.fixture
def owner(hub: HfApi, tmp_path: Path) -> HfApi:
    """Somebody else, with repos for our variants."""
    theirs = HfApi(hub.endpoint, token=add_user(tmp_path / "hub", "owner"))
    for variant in ("Int4", "Int8"):
        theirs.create_repo(f"owner/pico-{variant}")
    return theirs


def requests(hub: HfApi, repo: str = "owner/pico-Int4") -> list[tuple[int, str]]:
    return [(opened.num, opened.status) for opened in hub.get_repo_discussions(repo, discussion_type="pull_request")]


def test_repos_of_others_get_a_pull_request_once(hub: HfApi, owner: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path, owner="owner", private=False, more=", pull_request: true")
    out = finished(tmp_path / "out", pico_folder, asked, private=False)
    assert publish.preflight(asked, snapshots.peek("local/pico", tmp_path)) == []
    first, second = publish.publish(asked, out)
    assert first.url == f"{hub.endpoint}/owner/pico-Int4/discussions/1" and second.url.endswith("Int8/discussions/1")
    assert hub.list_repo_files("owner/pico-Int4") == [".gitattributes"], "main is its owner's"
    assert holds(hub, "owner/pico-Int4", "refs/pr/1", out / "Int4")
    again = publish.publish(asked, out)
    assert [pushed.url for pushed in again] == [first.url, second.url] and not again[0].changed
    (out / "Int4" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Better\n")
    updated, _ = publish.publish(asked, out)
    assert updated.changed and updated.url == first.url and len(requests(hub)) == 1
    assert holds(hub, "owner/pico-Int4", "refs/pr/1", out / "Int4")


@pytest.mark.parametrize("xet", [True, False])
def test_weights_go_into_an_open_pull_request_too(
    hub: HfApi, owner: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    target = Target("owner/pico-Int4", private=False, pull_request=True)
    for seed in (1, 2):
        made = small_folder(tmp_path / "made", shards=2, seed=seed)
        assert push.commit(push.prepare(made, target)).url.endswith("/discussions/1")
        assert holds(hub, "owner/pico-Int4", "refs/pr/1", made)


def test_what_the_owner_merged_is_known_as_ours(hub: HfApi, owner: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path, owner="owner", private=False, more=", pull_request: true")
    out = finished(tmp_path / "out", pico_folder, asked, private=False)
    by_hand(owner, "owner/pico-Int4", picture__png="theirs", USE_POLICY="theirs")
    publish.publish(asked, out)
    owner.merge_pull_request("owner/pico-Int4", 1)
    assert not publish.publish(asked, out)[0].changed and len(requests(hub)) == 1
    (out / "Int4" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Better\n")
    (out / "Int4" / "NOTICE").write_text("new\n")
    better = publish.publish(asked, out)[0]
    assert better.url.endswith("/discussions/2") and [num for num, _ in requests(hub)] == [2, 1]
    names = hub.list_repo_files("owner/pico-Int4", revision="refs/pr/2")
    assert {"picture.png", "USE_POLICY", "NOTICE"} <= set(names), "files of the owner are not taken for ours"


def test_a_repo_that_is_not_there_takes_no_pull_request(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path, owner="stranger", private=False, more=", pull_request: true")
    for refused in (
        lambda: publish.preflight(asked, snapshots.peek("local/pico", tmp_path)),
        lambda: publish.publish(asked, finished(tmp_path / "out", pico_folder, asked, private=False)),
    ):
        with pytest.raises(HubError, match="takes no pull request"):
            refused()


def test_what_is_private_goes_into_no_public_pull_request(
    hub: HfApi, owner: HfApi, tmp_path: Path, pico_folder: Path
) -> None:
    asked = document(tmp_path, owner="owner", more=", pull_request: true")
    with pytest.raises(HubError, match="the repo is public"):
        publish.publish(asked, finished(tmp_path / "out", pico_folder, asked))
    assert requests(hub) == []


# licences and gates

ND = "---\nlicense: cc-by-nd-4.0\n---\n"


@pytest.mark.parametrize("more", [", pull_request: true", ', branch: "{variant}"', ', tag: "v1"'])
def test_no_way_leads_around_a_licence(hub: HfApi, owner: HfApi, tmp_path: Path, pico_folder: Path, more: str) -> None:
    asked = document(tmp_path, owner="owner" if "pull" in more else "local", private=False, more=more)
    out = finished(tmp_path / "out", pico_folder, asked, licence="cc-by-nd-4.0", private=False)
    with pytest.raises(HubError, match="no-derivatives"):
        publish.publish(asked, out)
    hub.upload_file(path_or_fileobj=ND.encode(), path_in_repo="README.md", repo_id="local/pico")
    with pytest.raises(HubError, match="no-derivatives"):
        publish.preflight(asked, snapshots.peek("local/pico", tmp_path))
    assert requests(hub) == [] and not hub.repo_exists("local/pico-Int4")


def test_a_gate_is_as_asked_and_never_loosened(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    def publish_with(more: str) -> str | None:
        asked = document(tmp_path, private=False, more=more)
        publish.publish(asked, finished(tmp_path / asked.sha256, pico_folder, asked, private=False))
        return hub.model_info("local/pico-Int4").gated

    assert not publish_with("")
    assert publish_with(", gated: auto") == "auto"
    assert publish_with(", gated: manual") == "manual"
    assert publish_with(", gated: auto  ") == "manual", "its owner may have had a reason"
    assert publish_with("  ") == "manual"


def test_a_gated_base_goes_into_no_open_repo_of_others(
    hub: HfApi, owner: HfApi, tmp_path: Path, pico_folder: Path
) -> None:
    hub.update_repo_settings("local/pico", gated="manual")
    asked = document(tmp_path, owner="owner", private=False, more=", pull_request: true, accept_license: true")
    out = finished(tmp_path / "out", pico_folder, asked, private=False, gated=True)
    with pytest.raises(HubError, match="gated and this repo is not"):
        publish.publish(asked, out)
    assert requests(hub) == []
    for variant in ("Int4", "Int8"):
        owner.update_repo_settings(f"owner/pico-{variant}", gated="auto")
    # whoever proposes files to a gated repo must have been let in
    with pytest.raises(HubError, match="gated and this token has no access"):
        publish.publish(asked, out)


# manifests


@pytest.mark.parametrize(
    ("more", "place", "what"),
    [
        (', branch: "a b"', "publish.branch", "no name that git takes"),
        (', branch: "refs/heads/x"', "publish.branch", "no name that git takes"),
        (', tag: "v1..2"', "publish.tag", "no name that git takes"),
        (', tag: "{variant}.lock"', "publish.tag", "no name that git takes"),
        (', tag: "deadbeef"', "publish.tag", "no name that git takes"),
        (', tag: "main"', "publish.tag", "a tag and a branch of one name"),
        (', branch: "{variant}", tag: "{variant}"', "publish.tag", "a tag and a branch of one name"),
        (', pull_request: true, branch: "x"', "publish.branch", "goes to main"),
        (', pull_request: true, tag: "v1"', "publish.tag", "before its repo's owner merges it"),
        (", pull_request: true, gated: auto", "publish.gated", "only a repo's owner"),
        (", pull_request: true, collection: x", "publish.collection", "under the name of a repo's owner"),
        (", gated: maybe", "publish.gated", "'maybe' is not supported"),
        (", pull_request: 1", "publish.pull_request", "neither yes nor no"),
    ],
)
def test_what_does_not_fit_together_is_said_before_any_work(tmp_path: Path, more: str, place: str, what: str) -> None:
    with pytest.raises(ManifestError) as refused:
        document(tmp_path, more=more)
    assert refused.value.where.endswith(place) and what in refused.value.what and refused.value.fix


def test_one_repo_needs_a_branch_and_a_tag_per_variant(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="every variant would have the same tag"):
        one_repo(tmp_path, ', tag: "v1"')
    (tmp_path / "m.yaml").write_text(ONE_REPO.replace("MORE", "").replace('"{variant}"', "x"))
    with pytest.raises(ManifestError, match="every variant would go to the same repo"):
        loading.load(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text.replace("Int4:", "a.lock:"), "'a.lock', for a.lock"),
        (lambda text: text.replace("Int4:", "main:"), None),
        (lambda text: text.replace("Int4:", "main:").replace("-compressed", ""), "main and the base model"),
        (lambda text: text.replace("MORE", ', tag: "t-{variant}"').replace("Int4:", "t-Int8:"), None),
        (lambda text: text.replace("MORE", ', tag: "v-{variant}"').replace("Int4:", "abcdef1:"), "'abcdef1'"),
    ],
)
def test_branches_are_compared_before_any_work(tmp_path: Path, change: Callable[[str], str], what: str | None) -> None:
    (tmp_path / "m.yaml").write_text(change(ONE_REPO).replace("MORE", ""))
    asked = loading.load(tmp_path / "m.yaml")
    if what is None:
        sources.check_repos(asked)
        return
    with pytest.raises(PlanError) as refused:
        sources.check_repos(asked)
    assert what in refused.value.what
