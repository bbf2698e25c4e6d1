"""Whether two models have the same tokens: what tokenizer.json says of both. Knows JSON; no file and no Hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubplugin.errors import PlanError


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model."""

    model: str  # as the manifest names it
    ids: Mapping[str, int]  # of all tokens, added ones too
    special: frozenset[str]  # tokens that are no text

    def check_same(self, other: "Vocabulary", place: str, fix: str) -> None:
        """Raise PlanError at `place` where the other model's tokens are others."""
        if differing := self._difference(other):
            raise PlanError(place, f"the tokens of {self.model} are not those of {other.model}: {differing}", fix)

    def _difference(self, other: "Vocabulary") -> str:
        if self.ids != other.ids:
            wrong = [name for name in (*self.ids, *other.ids) if self.ids.get(name) != other.ids.get(name)]
            name = min(wrong, key=lambda name: self.ids.get(name, other.ids.get(name, 0)))
            one, two = ("none" if ids.get(name) is None else ids[name] for ids in (self.ids, other.ids))
            return f"{len(set(wrong))} differ, the first is {name!r} (id {one} here, {two} there)"
        if self.special != other.special:
            name = min(self.special ^ other.special)
            return f"{name!r} is special in one of them only"
        return ""


def read(text: str | None, model: str, place: str) -> Vocabulary:
    """The vocabulary in the text of a tokenizer.json. Raises PlanError where there is none, or it is not readable."""
    fix = "name a model with a tokenizer.json, as AutoTokenizer.save_pretrained writes it"
    if text is None:
        raise PlanError(place, f"{model} has no tokenizer.json to compare tokens by", fix)
    try:
        found = json.loads(text)
        ids = _ids(found["model"]["vocab"])
        added = found.get("added_tokens") or []
        ids |= {str(token["content"]): int(token["id"]) for token in added}
        special = frozenset(str(token["content"]) for token in added if token.get("special"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError(place, f"tokenizer.json of {model} holds no vocabulary", fix) from error
    return Vocabulary(model, ids, special)


def _ids(vocabulary: Any) -> dict[str, int]:
    """Ids by token: of BPE and WordPiece as they stand; Unigram lists its tokens in the order of their ids."""
    if isinstance(vocabulary, list):
        return {str(entry[0]): index for index, entry in enumerate(vocabulary)}
    return {str(name): int(number) for name, number in vocabulary.items()}
