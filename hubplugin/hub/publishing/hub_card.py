"""A card as the Hub sees it: whether it takes the metadata, and what was left out or renamed so that it does.

Knows the Hub's validation of cards. Knows no repo and no report.
"""

from collections.abc import Iterable

from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hubplugin import licences
from hubplugin.errors import HubError
from hubplugin.evaluation.cards import card_metadata, markdown
from hubplugin.hub.client import clear_errors, endpoint
from hubplugin.hub.snapshots import Known


def check(card: str, where: str) -> None:
    """Raise HubError, in the Hub's words, where it would refuse a commit for its card."""
    with clear_errors(where):
        response = get_session().post(
            f"{endpoint()}/api/validate-yaml",
            json={"content": card, "repoType": "model"},
            headers=build_hf_headers(library_name="hubplugin"),
        )
        if response.status_code != 400:
            hf_raise_for_status(response)
            return
        faults = "; ".join(str(error.get("message")) for error in response.json().get("errors", ()))
    raise HubError(
        f"{where}: README.md",
        f"the Hub refuses the card: {' '.join(faults.split())[:400]}",
        "mend the metadata of the base's card, from which it was taken",
    )


def inherited(base: Known) -> str:
    """A card with only what a variant's card takes from its base."""
    data = card_metadata.inherited(base)
    return f"---\n{markdown.front_matter(data)}---\n" if data else ""


def notes(licence: str | None, languages: Iterable[str]) -> list[str]:
    """What cards say in other words than the base's card, since the Hub refuses its words. One note, or none."""
    said = []
    if name := licences.other_id(licence):
        known = licences.same_licence(licence)
        written = f"`license: {known}`" if known else f"`license: other`, `license_name: {name}`"
        said.append(f"the Hub knows no licence {licence!r}: cards say {written}")
    if unknown := [language for language in languages if not card_metadata.LANGUAGE.fullmatch(language)]:
        said.append(f"no ISO 639 code, so left out of cards: language {', '.join(map(repr, unknown))}")
    return ["; ".join(said)] if said else []
