"""The published tests of the installed huggingface_hub against the embedded hub, those that fit it.

They come from the source archive of that version, by pip. Where no package index answers, the test is skipped. What
they need of their own surroundings (fixtures, `mocker`, accounts) is below.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hubplugin import localhub

USER = "dummy-hub-user"  # in place of theirs, which is no name that one can register
TOKENS = {  # of accounts that the tests name
    USER: "hf_HubCITokenXXXXXXXXXXXXXXXXXXXXX",
    "DVUser": "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",
    "EnterpriseAdmin": "hf_enterprise_admin_token",
}
FILES = (
    "test_hf_api.py",
    "test_repocard.py",
    "test_commit_scheduler.py",
    "test_xet_upload.py",
    "test_cli_discussions.py",
    "test_copy_files.py",
    "test_hf_file_system.py",
    "test_file_download.py",
)
NOT_HERE = {  # pattern of tests that are left out -> why
    "webhook": "no webhooks",
    "bucket|_bucket_|test_cp_": "no buckets",
    "InferenceCatalog|inference_endpoint|Space": "no inference and no Spaces that run",
    "test_list_likes|test_whoami_with_passing_token|private_by_default": "likes and accounts of the real Hub",
    "fixtures|from_file|change_repocard|custom_template|data_must_be_dict|without_metadata|linebreaks|updating_text": (
        "files that the archive does not have"
    ),
    "test_validate_repocard|invalid_model_index|model_card_with_model_index|eval_results": (
        "files that the archive does not have"
    ),
    "RelativePaths": "paths with backslashes, which this hub refuses",
    r"TestXetUpload::test_upload_file$|new_session_api|test_get_file_with_xet": "downloads by Xet",
    "_git_folder_excluded": "a git repo",
}
CONFTEST = '''
import os
from contextlib import ExitStack, suppress
from unittest import mock

import pytest
from huggingface_hub import HfApi, constants

from .testing_constants import ENDPOINT_STAGING, TOKEN
from .testing_utils import repo_name

RepoFactory = object


def pytest_configure(config):
    for name in "api transfer inference xet no_xet production deprecated git_lfs vcr".split():
        config.addinivalue_line("markers", name)


def pytest_collection_modifyitems(items):
    for item in items:
        for name in ("production", "no_xet", "git_lfs", "vcr"):
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=name))


class Mocker:
    """The part of pytest-mock that the tests use."""

    Mock, MagicMock, call, ANY = mock.Mock, mock.MagicMock, mock.call, mock.ANY

    def __init__(self, stack):
        def patch(*args, **kwargs):
            return stack.enter_context(mock.patch(*args, **kwargs))

        patch.object = lambda *args, **kwargs: stack.enter_context(mock.patch.object(*args, **kwargs))
        patch.dict = lambda *args, **kwargs: stack.enter_context(mock.patch.dict(*args, **kwargs))
        self.patch = patch


@pytest.fixture
def mocker():
    with ExitStack() as stack:
        yield Mocker(stack)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("hf")
    names = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_XET_CACHE": "xet", "HF_ASSETS_CACHE": "assets"}
    names |= {"HUGGINGFACE_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "stored_tokens"}
    for name, folder in names.items():
        monkeypatch.setattr(constants, name, os.path.join(home, folder))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_EXPERIMENTAL_WARNING", True)


@pytest.fixture(autouse=True)
def _expected_warnings(request):
    with ExitStack() as stack:
        for marker in request.node.iter_markers("deprecated"):
            for name in marker.args:
                stack.enter_context(pytest.warns(FutureWarning, match=f".*'{name}'.*"))
        yield


@pytest.fixture(scope="session")
def api():
    return HfApi(endpoint=ENDPOINT_STAGING, token=TOKEN)


@pytest.fixture(scope="session")
def api_prod():
    pytest.skip("production")


@pytest.fixture
def repo_factory(api):
    created = []

    def create(repo_type="model", **kwargs):
        kwargs = {"repo_id": repo_name(prefix=repo_type), **kwargs}
        if repo_type == "space":
            kwargs.setdefault("space_sdk", "gradio")
        url = api.create_repo(repo_type=repo_type, **kwargs)
        created.append((url.repo_id, repo_type))
        return url

    yield create
    for repo_id, repo_type in created:
        with suppress(Exception):  # some belong to another account
            api.delete_repo(repo_id, repo_type=repo_type)
'''


def fetch_tests(folder: Path) -> Path:
    """The published tests, as a package in the folder. Skips the test where they cannot be had."""
    name = f"huggingface_hub=={importlib.metadata.version('huggingface_hub')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", name]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    archives = list(folder.glob("huggingface_hub-*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"no source archive of {name}: {done.stderr[-300:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder / "source", filter="data")
    found = list(folder.glob("source/*/tests"))
    if not found:
        pytest.skip(f"the source archive of {name} has no tests")
    shutil.move(found[0], folder / "tests")
    return folder / "tests"


def prepare(tests: Path, url: str) -> None:
    """Point the tests to the hub and its accounts."""
    for path in tests.glob("*.py"):
        text = path.read_text(encoding="utf-8").replace("https://hub-ci.huggingface.co", url)
        path.write_text(re.sub(r'^USER = ".*"', f'USER = "{USER}"', text, flags=re.MULTILINE), encoding="utf-8")
    (tests / "__init__.py").touch()
    (tests / "conftest.py").write_text(CONFTEST)


def results(report: Path) -> dict[str, str]:
    """Test -> passed, skipped, failed or left out."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        left_out = any(re.search(pattern, name) for pattern in NOT_HERE)
        outcomes[name] = "left out" if left_out and outcome == "failed" else outcome
    return outcomes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_published_tests_of_the_client_pass(tmp_path: Path) -> None:
    tests = fetch_tests(tmp_path)
    root = tmp_path / "hub"
    root.mkdir()
    for user, token in TOKENS.items():
        localhub.add_user(root, user, "write", token)
    with localhub.start(root, token=TOKENS[USER], user=USER) as hub:
        prepare(tests, hub.url)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "PYTEST"))}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "NO_COLOR": "1"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200"}
        options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tmp_path}", "--timeout=120"]
        files = [f"tests/{name}" for name in FILES]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "--tb=short", "--junit-xml=report.xml", *files],
            cwd=tmp_path,
            env=kept | settings,
            capture_output=True,
            text=True,
        )
    assert (tmp_path / "report.xml").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    outcomes = results(tmp_path / "report.xml")
    counts = {kind: list(outcomes.values()).count(kind) for kind in ("passed", "failed", "left out", "skipped")}
    print(f"huggingface_hub {importlib.metadata.version('huggingface_hub')}: {counts}")
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    assert not failed, "\n".join(failed) + done.stdout[-20_000:]
    assert counts["passed"] > 300
