"""Publishing through a network that breaks and a Hub that refuses: nothing twice, nothing half, nothing in vain."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault_helpers import PATIENCE, Site, contents, impatient, site, small_folder
from huggingface_hub import constants
from localhub_helpers import client_env

from hubplugin.errors import HubError, HubUnreachable
from hubplugin.hub.publishing import push
from hubplugin.hub.publishing.targets import Target
from hubplugin.hub.publishing.upstream import COMMIT_MESSAGE
from hubplugin.hub.sending import transfer

__all__ = ["impatient", "site"]  # fixtures
REPO = "local/variant"
PUSH = """
import sys
from pathlib import Path
from hubplugin.hub.publishing import push
push.push(Path(sys.argv[1]), sys.argv[2], private=True)
"""


def test_the_same_again_sends_nothing(site: Site, tmp_path: Path) -> None:
    made = small_folder(tmp_path / "made", shards=2)
    first = push.push(made, REPO, private=True)
    assert first.changed and site.watch.content >= 120_000 and site.tree(REPO) == contents(made)
    site.watch.clear()
    again = push.push(made, REPO, private=True)
    assert (again.changed, again.commit, again.url) == (False, first.commit, first.url)
    assert site.watch.writes == [] and site.watch.content == 0


def test_a_small_edit_sends_no_weights(site: Site, tmp_path: Path) -> None:
    made = small_folder(tmp_path / "made", shards=2)
    push.push(made, REPO, private=True)
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    site.watch.clear()
    assert push.push(made, REPO, private=True).changed
    assert site.watch.content == 0 and site.tree(REPO) == contents(made)


@pytest.mark.parametrize("xet", [True, False])
def test_what_arrived_before_a_kill_is_not_sent_again(site: Site, tmp_path: Path, xet: bool) -> None:
    """Of five files of 300 kB, two or three arrive before the process ends."""
    made = small_folder(tmp_path / "made", shards=5, size=300_000)
    site.api.create_repo(REPO, private=True)
    env = client_env(tmp_path, site.network.url, str(site.api.token), xet) | PATIENCE
    arguments = [sys.executable, "-c", PUSH, str(made), REPO]
    with subprocess.Popen(arguments, env=env, stderr=subprocess.DEVNULL) as process:
        site.network.broken = process.kill
        site.network.cut_after(1_000_000)
        assert process.wait() == -9
    assert site.commits(REPO) == 1, "nothing was published"
    site.network.mend()
    site.watch.clear()
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert site.tree(REPO) == contents(made) and site.commits(REPO) == 2
    assert 300_000 <= site.watch.content <= 1_000_000


@pytest.mark.parametrize("xet", [True, False])
def test_what_arrived_before_a_cut_is_not_sent_again(
    site: Site, tmp_path: Path, xet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    made = small_folder(tmp_path / "made", shards=5, size=300_000)
    site.network.cut_after(1_000_000)
    with pytest.raises(HubUnreachable, match="cannot reach"):
        push.push(made, REPO, private=True)
    site.network.mend()
    site.watch.clear()
    push.push(made, REPO, private=True)
    assert site.tree(REPO) == contents(made) and site.commits(REPO) == 2
    assert 300_000 <= site.watch.content <= 1_000_000


def test_a_connection_that_comes_back_is_used_without_a_word_from_the_user(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_folder(tmp_path / "made", shards=5, size=300_000)
    site.network.cut_after(1_000_000)
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: site.network.mend())
    assert push.push(made, REPO, private=True).changed
    assert "cannot reach" in (said := capsys.readouterr().err) and "once more in" in said
    assert site.tree(REPO) == contents(made) and site.commits(REPO) == 2
    assert site.watch.content <= 2_100_000, "what had arrived was not sent again"


def test_a_commit_whose_answer_was_lost_is_not_made_twice(site: Site, tmp_path: Path) -> None:
    """The Hub has it; what we hear is a connection that broke."""
    made = small_folder(tmp_path / "made")
    push.push(made, REPO, private=True)
    (made / "LICENSE").write_text("MIT\n")
    site.watch.after = lambda path: site.network.drop() if "/commit/" in path else None
    pushed = push.push(made, REPO, private=True)
    assert pushed.changed and site.commits(REPO) == 3 and site.tree(REPO) == contents(made)
    assert len(site.watch.of("/commit/")) == 2, "once for each version"


@pytest.mark.parametrize("status", [401, 403, 409, 412])
@pytest.mark.parametrize("where", ["/api/models/local/variant/commit/", "/v1/xorbs/", "/xet-write-token/"])
def test_a_refusal_ends_it_at_once_and_says_why(site: Site, tmp_path: Path, status: int, where: str) -> None:
    made = small_folder(tmp_path / "made")
    site.api.create_repo(REPO, private=True)
    site.watch.refuse = lambda method, path: status if where in path else None
    with pytest.raises(HubError) as refused:
        push.push(made, REPO, private=True)
    assert not isinstance(refused.value, HubUnreachable)
    assert str(status) in refused.value.what or (status == 412 and "moved" in refused.value.what)
    assert len(site.watch.of(where)) == 1 and site.commits(REPO) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_a_few_times(site: Site, tmp_path: Path, status: int) -> None:
    made = small_folder(tmp_path / "made")
    site.watch.refuse = lambda method, path: status if "/commit/" in path else None
    with pytest.raises(HubUnreachable, match=str(status)):
        push.push(made, REPO, private=True)
    assert len(site.watch.of("/commit/")) == 1 + len(transfer.WAITS)
    left = iter([status, status])
    site.watch.refuse = lambda method, path: next(left, None) if "/commit/" in path else None
    assert push.push(made, REPO, private=True).changed and site.tree(REPO) == contents(made)


@pytest.mark.parametrize(
    ("header", "value"), [(b"retry-after", b"7"), (b"ratelimit", b'"api";r=0;t=7'), (b"retry-after", b"0"), (b"x", b"")]
)
def test_the_hub_says_how_long_to_wait(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes, value: bytes
) -> None:
    made, waited, left = small_folder(tmp_path / "made"), [], iter([429])
    monkeypatch.setattr(transfer.time, "sleep", waited.append)
    site.watch.beside = ((header, value),)
    site.watch.refuse = lambda method, path: next(left, None) if "/commit/" in path else None
    assert push.push(made, REPO, private=True).changed
    assert [seconds for seconds in waited if seconds in (0, 7)] == [7.0 if b"7" in value else 0.0]


def test_nobody_waits_for_an_hour(site: Site, tmp_path: Path) -> None:
    made = small_folder(tmp_path / "made")
    site.watch.beside = ((b"retry-after", b"3600"),)
    site.watch.refuse = lambda method, path: 429 if "/commit/" in path else None
    with pytest.raises(HubUnreachable, match="429") as refused:
        push.push(made, REPO, private=True)
    assert len(site.watch.of("/commit/")) == 1 and refused.value.fix == "try again in 3600 s, as the Hub asks"


@pytest.mark.slow
def test_fifty_breaks_at_random_points_lose_and_double_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each, a publish that is not interrupted makes of the repo exactly the folder, in one commit of ours."""
    monkeypatch.setattr(transfer, "WAITS", (0.0,))
    rng = random.Random(5)
    site.api.create_repo("local/asked", private=True)
    broken = finished = 0
    for round_ in range(50):
        repo = f"local/variant-{round_ // 10}" if round_ % 10 else f"local/variant-{round_}"
        target = Target(repo, private=True, branch="main" if round_ % 3 else "Int4")
        if round_ % 5 == 4:
            target = Target("local/asked", private=True, pull_request=True)
        made = tmp_path / "made"
        shutil.rmtree(made, ignore_errors=True)
        shards, size = rng.randint(1, 3), rng.randint(20_000, 90_000)
        small_folder(made, shards, size, seed=round_)
        before = _ours(site, target)
        if rng.random() < 0.75:
            site.network.cut_after(rng.randint(1, shards * size + 15_000))
        else:
            site.network.cut_after(None, back=rng.randint(1, 12_000))
        try:
            push.commit(push.prepare(made, target))
            finished += 1
        except HubUnreachable:
            broken += 1
        site.network.mend()
        push.commit(push.prepare(made, target))
        assert site.tree(target.repo, _revision(target)) == contents(made), round_
        assert _ours(site, target) == before + 1, round_
    print(f"{broken} broke, {finished} were whole before the break")
    assert len(list(site.api.get_repo_discussions("local/asked"))) == 1
    assert broken >= 30 and list((site.root / "incoming").iterdir()) == []


def _revision(target: Target) -> str:
    """Where a variant stands; the test has one pull request."""
    return "refs/pr/1" if target.pull_request else target.branch


def _ours(site: Site, target: Target) -> int:
    """How many commits of ours stand there."""
    if not site.api.repo_exists(target.repo) or not site.api.revision_exists(target.repo, _revision(target)):
        return 0
    titles = [commit.title for commit in site.api.list_repo_commits(target.repo, revision=_revision(target))]
    return titles.count(COMMIT_MESSAGE)
