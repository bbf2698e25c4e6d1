"""Access to gated repos of the embedded hub by the official client, and tokens of the Hub's form."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError
from localhub_helpers import api_of, http_of, refused

from hubplugin import localhub
from hubplugin.localhub.server import Running

REPO = "local/gated"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with localhub.start(tmp_path / "hub") as running:
        api = api_of(running)
        api.create_repo(REPO)
        api.update_repo_settings(REPO, gated="manual")
        yield running


def test_tokens_have_the_hubs_form(hub: Running) -> None:
    for token in (hub.token, localhub.add_user(hub.root, "other"), localhub.add_user(hub.root, "third", "read")):
        assert re.fullmatch(r"hf_[A-Za-z0-9]{34}", token)
        assert http_of(hub, token).get("/api/whoami-v2").status_code == 200


def test_access_is_granted_once(hub: Running, api: HfApi) -> None:
    localhub.add_user(hub.root, "guest")
    api.grant_access(REPO, "guest")
    with refused(400, "access to local/gated already"):
        api.grant_access(REPO, "guest")
    with refused(400, "accepted already"):
        api.accept_access_request(REPO, "guest")
    with refused(404, "No user 'nobody'"):
        api.grant_access(REPO, "nobody")
    api.create_repo("local/open")
    with refused(400, "not gated"):
        api.grant_access("local/open", "guest")


def test_a_request_goes_from_pending_to_rejected_to_accepted(hub: Running, api: HfApi) -> None:
    token = localhub.add_user(hub.root, "guest")
    guest = api_of(hub, token)
    with refused(404, "has not asked"):
        api.accept_access_request(REPO, "guest")
    assert http_of(hub, token).post(f"/{REPO}/ask-access").json() == {"status": "pending"}
    (request,) = api.list_pending_access_requests(REPO)
    with refused(400, "pending already"):
        api.cancel_access_request(REPO, "guest")
    api.reject_access_request(REPO, request_id=request.request_id, rejection_reason="no")
    with refused(400, "rejected already"):
        api.reject_access_request(REPO, "guest", rejection_reason="no")
    with pytest.raises(GatedRepoError, match="not in the authorized list"):
        guest.auth_check(REPO)
    api.accept_access_request(REPO, request_id=request.request_id)
    guest.auth_check(REPO)
    api.cancel_access_request(REPO, "guest")
    assert [row.username for row in api.list_pending_access_requests(REPO)] == ["guest"]
    for unknown in ("x", "1-nobody", "999-guest"):
        with refused(404):
            api.accept_access_request(REPO, request_id=unknown)
    with refused(403):
        guest.grant_access(REPO, "guest")
