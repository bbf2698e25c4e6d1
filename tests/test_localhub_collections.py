"""Collections of the embedded hub by the official client: themes, slugs, nested collections, filters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from localhub_helpers import api_of, http_of, refused

from hubplugin import localhub
from hubplugin.localhub.server import Running


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with localhub.start(tmp_path / "hub") as running:
        yield running


def test_theme_title_and_description_change_and_both_slugs_work(api: HfApi) -> None:
    first = api.create_collection("My cool stuff", description="d")
    assert (first.theme, first.description) == ("blue", "d") and first.slug.startswith("local/my-cool-stuff-")
    second = api.update_collection_metadata(first.slug, title="Über & out", theme="pink", description="e")
    assert (second.title, second.theme, second.description) == ("Über & out", "pink", "e")
    assert second.slug != first.slug and second.slug[-24:] == first.slug[-24:]
    assert api.get_collection(first.slug).slug == api.get_collection(second.slug).slug == second.slug
    assert api.update_collection_metadata(first.slug, theme="indigo").title == "Über & out"
    assert [collection.slug for collection in api.list_collections(owner="local")] == [second.slug]
    for wrong in ({"theme": "puce"}, {"title": " "}, {"title": "x" * 60}):
        with refused(400):
            api.update_collection_metadata(first.slug, **wrong)
    api.delete_collection(first.slug)
    with refused(404):
        api.get_collection(second.slug)
    assert api.create_collection("No words: 中").description is None


def test_collections_are_listed_by_item_owner_and_words(hub: Running, api: HfApi) -> None:
    api.create_repo("local/a")
    api.create_repo("local/a", repo_type="dataset")
    with_model, with_dataset = api.create_collection("With model").slug, api.create_collection("With data").slug
    api.add_collection_item(with_model, "local/a", "model")
    api.add_collection_item(with_dataset, "local/a", "dataset")
    other = api_of(hub, localhub.add_user(hub.root, "other"))
    theirs = other.create_collection("Theirs", description="has a model too").slug
    other.add_collection_item(theirs, "local/a", "model")

    def listed(**wanted: str | list[str]) -> list[str]:
        return sorted(collection.slug for collection in api.list_collections(**wanted))

    assert listed(item="models/local/a") == sorted([with_model, theirs])
    assert listed(item="datasets/local/a") == [with_dataset]
    assert listed(item="models/local/no") == [] == listed(owner="nobody")
    assert listed(item="models/local/a", owner="local") == [with_model]
    assert listed(item=["models/local/a", "datasets/local/a"]) == sorted([with_model, with_dataset, theirs])
    assert listed(owner=["local", "other"]) == listed()
    http = http_of(hub)
    assert [row["slug"] for row in http.get("/api/collections?q=MODEL").json()] == [theirs, with_model]
    assert http.get("/api/collections?sort=random").status_code == 400
    first = http.get("/api/collections?limit=1")
    assert len(first.json()) == 1 and 'rel="next"' in first.headers["link"]
    assert len(list(api.list_collections(limit=2))) == 2


def test_the_latest_change_comes_first_and_lists_show_a_few_items(api: HfApi) -> None:
    slugs = [api.create_collection(title).slug for title in ("one", "two")]
    for number in range(6):
        api.create_repo(f"local/m{number}")
        api.add_collection_item(slugs[0], f"local/m{number}", "model")
    listed = list(api.list_collections(owner="local", sort="lastModified"))
    assert [collection.slug for collection in listed] == slugs
    assert len(listed[0].items) == 4 and len(api.get_collection(slugs[0]).items) == 6


def test_a_collection_may_hold_another_one(hub: Running, api: HfApi) -> None:
    outer, inner = api.create_collection("Outer").slug, api.create_collection("Inner", private=True).slug
    api.add_collection_item(outer, inner, "collection", note="nested")
    with refused(409):
        api.add_collection_item(outer, inner, "collection")
    with refused(404):
        api.add_collection_item(outer, "local/no-" + "0" * 24, "collection")
    with refused(501, "no items of the type 'paper'"):
        api.add_collection_item(outer, "2307.09288", "paper")
    (item,) = api.get_collection(outer).items
    assert (item.item_id, item.item_type, item.note) == (inner, "collection", "nested")
    other = api_of(hub, localhub.add_user(hub.root, "other"))
    assert other.get_collection(outer).items == []  # the inner one is private
