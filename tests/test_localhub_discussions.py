"""Discussions and pull requests of the embedded hub by the official client: comments, titles, status, events, diffs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange, DiscussionTitleChange
from localhub_helpers import api_of, http_of, refused

from hubplugin import localhub
from hubplugin.localhub.server import Running
from hubplugin.localhub.store import Store

REPO = "local/m"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with localhub.start(tmp_path / "hub") as running:
        api_of(running).create_repo(REPO)
        yield running


@pytest.fixture
def other(hub: Running) -> HfApi:
    return api_of(hub, localhub.add_user(hub.root, "other"))


def texts(api: HfApi, num: int) -> list[str]:
    events = api.get_discussion_details(REPO, num).events
    return [event.content for event in events if isinstance(event, DiscussionComment)]


def test_a_comment_is_made_edited_and_hidden(api: HfApi) -> None:
    num = api.create_discussion(REPO, "Question", description="the first").num
    comment = api.comment_discussion(REPO, num, "the <second> & **bold**")
    assert texts(api, num) == ["the first", "the <second> & **bold**"]
    assert (comment.edited, comment.hidden, comment.number_of_edits, comment.author) == (False, False, 0, "local")
    assert "<second>" not in comment.rendered

    edited = api.edit_discussion_comment(REPO, num, comment.id, "better")
    again = api.edit_discussion_comment(REPO, num, comment.id, "best")
    assert (edited.content, edited.edited, again.number_of_edits) == ("better", True, 2)
    assert again.last_edited_by == "local" and again.last_edited_at >= comment.created_at
    description = api.get_discussion_details(REPO, num).events[0]
    api.edit_discussion_comment(REPO, num, description.id, "a better description")
    assert texts(api, num) == ["a better description", "best"]

    with pytest.warns(UserWarning, match="irreversible"):
        hidden = api.hide_discussion_comment(REPO, num, comment.id)
    assert hidden.hidden and "best" not in hidden.content and hidden.edit_history == []
    with refused(404, "No comment"):
        api.edit_discussion_comment(REPO, num, comment.id, "back again")


def test_a_comment_belongs_to_its_author_and_its_discussion(api: HfApi, other: HfApi) -> None:
    num = other.create_discussion(REPO, "Theirs", description="x").num
    second = other.create_discussion(REPO, "Another").num
    comment = other.get_discussion_details(REPO, num).events[0]
    ours = api.comment_discussion(REPO, num, "ours")
    with refused(403, "Only its author"):
        api.edit_discussion_comment(REPO, num, comment.id, "not mine")
    with refused(403), pytest.warns(UserWarning):
        other.hide_discussion_comment(REPO, num, ours.id)
    with refused(404):
        other.edit_discussion_comment(REPO, second, comment.id, "in the wrong place")
    for unknown in ("0" * 24, "f" * 24, "x" * 24, "1"):
        with refused(404):
            other.edit_discussion_comment(REPO, num, unknown, "nowhere")
    with pytest.warns(UserWarning):
        assert api.hide_discussion_comment(REPO, num, comment.id).hidden  # the owner of the repo may
    with refused(404):
        api.comment_discussion(REPO, 99, "nowhere")
    with refused(400):
        api.comment_discussion(REPO, num, "  ")


def test_titles_and_status_change_by_author_or_owner_and_leave_events(api: HfApi, other: HfApi) -> None:
    num = api.create_discussion(REPO, " Old ").num
    event = api.rename_discussion(REPO, num, "New")
    assert isinstance(event, DiscussionTitleChange) and (event.old_title, event.new_title) == ("Old", "New")
    closed = api.change_discussion_status(REPO, num, "closed", comment="because")
    assert isinstance(closed, DiscussionStatusChange) and closed.new_status == "closed"
    details = api.get_discussion_details(REPO, num)
    assert (details.title, details.status) == ("New", "closed")
    assert [event.type for event in details.events] == ["comment", "title-change", "status-change", "comment"]
    with refused(403):
        other.rename_discussion(REPO, num, "Theirs")
    with refused(400):
        api.rename_discussion(REPO, num, "  ")
    theirs = other.create_discussion(REPO, "Theirs").num
    assert api.rename_discussion(REPO, theirs, "Ours").new_title == "Ours"


def test_a_pull_request_tells_its_commits_its_diff_and_its_merge(api: HfApi) -> None:
    api.create_commit(
        REPO,
        [CommitOperationAdd("a.txt", b"one\ntwo\n"), CommitOperationAdd("b.txt", b"gone")],
        commit_message="base",
    )
    files = {"a.txt": b"one\n2\nno end", "c.bin": b"\0weights", "d.txt": b"\xff\xfe"}
    adds = [CommitOperationAdd(path, data) for path, data in files.items()]
    num = api.create_commit(REPO, adds, commit_message="Change", create_pr=True).pr_num
    assert num is not None
    api.delete_file("b.txt", REPO, revision=f"refs/pr/{num}", commit_message="Remove b")
    details = api.get_discussion_details(REPO, num)
    commits = [event for event in details.events if isinstance(event, DiscussionCommit)]
    assert [event.summary for event in commits] == ["Change", "Remove b"]
    assert commits[1].oid == api.model_info(REPO, revision=f"refs/pr/{num}").sha
    assert details.diff is not None
    for line in ("--- a/a.txt", "-two", "+2", "+no end", "\\ No newline at end of file", "+++ /dev/null", "-gone"):
        assert f"\n{line}\n" in details.diff
    assert "+version https://git-lfs.github.com/spec/v1\n" in details.diff
    assert "Binary files a/d.txt and b/d.txt differ\n" in details.diff
    api.merge_pull_request(REPO, num, comment="thanks")
    events = api.get_discussion_details(REPO, num).events
    assert [event.type for event in events[-2:]] == ["status-change", "comment"]


def test_a_squashed_branch_has_nothing_in_common_with_a_pull_request(api: HfApi) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=REPO)
    num = api.create_pull_request(REPO, title="t").num
    api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id=REPO, revision=f"refs/pr/{num}")
    api.super_squash_history(REPO)
    assert api.get_discussion_details(REPO, num).conflicting_files is True
    with refused(409, "no commit in common"):
        api.merge_pull_request(REPO, num)


def test_a_pull_request_needs_a_branch(api: HfApi) -> None:
    head = api.model_info(REPO).sha
    api.create_tag(REPO, tag="v1")
    add = [CommitOperationAdd("a.txt", b"1")]
    for revision in (head, "v1", "no"):
        with refused(404, "Revision Not Found"):
            api.create_commit(REPO, add, commit_message="m", create_pr=True, revision=revision)
    assert list(api.get_repo_discussions(REPO)) == []


def test_readers_of_a_gated_repo_see_no_diff(hub: Running, api: HfApi, other: HfApi) -> None:
    add = [CommitOperationAdd("a.txt", b"secret")]
    num = api.create_commit(REPO, add, commit_message="m", create_pr=True).pr_num
    api.update_repo_settings(REPO, gated="manual")
    url = f"/api/models/{REPO}/discussions/{num}?diff=1"
    assert "secret" in http_of(hub).get(url).json()["diff"]
    assert http_of(hub, other.token).get(url).json()["diff"] == ""


def test_discussions_of_an_older_hub_have_their_description_as_a_comment(tmp_path: Path) -> None:
    root = tmp_path / "old"
    with localhub.start(root) as running:
        api = api_of(running)
        api.create_repo(REPO)
        num = api.create_discussion(REPO, "t", description="from before").num
    store = Store(root)
    with store.write() as db:
        db.execute("delete from event")
    store.close()
    with localhub.start(root) as running:
        assert texts(api_of(running), num) == ["from before"]
