"""Repo cards in the embedded hub: what the real Hub accepts, what it refuses, and the tags that it makes of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from huggingface_hub.utils import HfHubHTTPError
from localhub_helpers import api_of, http_of

from hubplugin import localhub
from hubplugin.localhub.contents import metadata
from hubplugin.localhub.server import Running


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with localhub.start(tmp_path_factory.mktemp("hub")) as running:
        api_of(running).create_repo("local/m")
        yield running


def validate(hub: Running, yaml_text: str) -> tuple[int, str]:
    response = http_of(hub).post(
        "/api/validate-yaml", json={"content": f"---\n{yaml_text}\n---\n", "repoType": "model"}
    )
    return response.status_code, " ".join(error["message"] for error in response.json()["errors"])


@pytest.mark.parametrize(
    "yaml_text",
    [
        "datasets: glue",
        "datasets: [glue, a/b]",
        "license: openrail++",
        "license: [mit, llama3.3]",
        "license: lppl-1.3c",
        "language: no",
        "language: [no, en, zh-Hans]",
        "metrics: acc",
        "base_model: gpt2",
        "anything: yes",
    ],
)
def test_what_the_real_hub_accepts_is_accepted(hub: Running, yaml_text: str) -> None:
    assert validate(hub, yaml_text) == (200, "")


@pytest.mark.parametrize("licence", ["asdf", "Apache License 2.0", "MIT", "apache-2", "[mit, beerware]", "no"])
def test_an_unknown_licence_is_refused_by_name(hub: Running, api: HfApi, licence: str) -> None:
    status, message = validate(hub, f"license: {licence}")
    name = licence.strip("[]").split(", ")[-1]
    assert (
        status == 400 and f"'{name}'" in message and '"license" must be one of' in message and "apache-2.0" in message
    )
    card = f"---\nlicense: {licence}\n---\n".encode()
    with pytest.raises(ValueError, match=f"'{name}'"):
        api.create_commit("local/m", [CommitOperationAdd("README.md", card)], commit_message="m")
    assert api.list_repo_files("local/m") == [".gitattributes"]


@pytest.mark.parametrize("yaml_text", ["license: 5", "license: {a: b}", "license: [[mit]]", "license: true"])
def test_a_licence_that_is_no_word_is_refused(hub: Running, yaml_text: str) -> None:
    assert validate(hub, yaml_text)[0] == 400


def test_a_card_that_begins_with_an_empty_line_is_read(hub: Running) -> None:
    content = "\n\n---\nmodel-index: foo\n---\ntext"
    assert http_of(hub).post("/api/validate-yaml", json={"content": content}).status_code == 400
    assert metadata.parse_card("\n---\nlicense: mit\n---\n") == ({"license": "mit"}, [])


def test_the_client_validates_a_card_as_text(hub: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    card = ModelCard("---\nlicense: mit\ndatasets: glue\n---\n")
    card.validate()
    card.data.license = "asdf"
    with pytest.raises(ValueError, match='- Error: "license" must be one of'):
        card.validate()


def test_tags_of_datasets_have_their_key_before_them(hub: Running, api: HfApi) -> None:
    text = "language: no\nlicense: mit\ntask_categories: [text-generation]\nsize_categories: n<1K\ntags: [x]"
    data, errors = metadata.parse_card(f"---\n{text}\n---\n")
    expected = ["x", "language:no", "license:mit", "size_categories:n<1K", "task_categories:text-generation"]
    assert errors == [] and metadata.tags(data, "datasets") == expected
    assert metadata.tags(data)[:3] == ["x", "no", "license:mit"]
    api.create_repo("local/d", repo_type="dataset")
    card = f"---\n{text}\n---\n".encode()
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="local/d", repo_type="dataset")
    filters = ({"language": "no"}, {"task_categories": "text-generation"}, {"size_categories": "n<1K"}, {"filter": "x"})
    for wanted in filters:
        assert [dataset.id for dataset in api.list_datasets(**wanted)] == ["local/d"]
    assert list(api.list_datasets(language="de")) == []


def test_errors_have_the_hubs_headers(hub: Running) -> None:
    response = http_of(hub).post("/api/validate-yaml", json={"content": "---\nlicense: asdf\n---\n"})
    assert "asdf" in response.headers["x-error-message"] and response.headers["x-request-id"]
    for url in ("/api/models/local/no", "/nowhere", "/api/models?limit=x"):
        response = http_of(hub).get(url)
        assert response.headers["x-error-code"] and response.headers["x-error-message"] and response.json()["error"]
    with pytest.raises(HfHubHTTPError) as error:
        api_of(hub).model_info("local/no")
    assert "Request ID: " in str(error.value)


def test_a_new_repo_with_a_licence_has_a_card(hub: Running, api: HfApi, tmp_path: Path) -> None:
    http = http_of(hub)
    body = {"name": "licensed", "license": "llama3.2"}
    assert http.post("/api/repos/create", json=body).status_code == 200
    assert api.model_info("local/licensed").card_data.license == "llama3.2"
    response = http.post("/api/repos/create", json={"name": "unlicensed", "license": "asdf"})
    assert response.status_code == 400 and "asdf" in response.json()["error"]
    assert not api.repo_exists("local/unlicensed")
    api.create_repo("local/s", repo_type="space", space_sdk="gradio")
    assert api.space_info("local/s").sdk == "gradio"
