"""Layer dropping: layers and sublayers are removed one after another, each time the one that costs least KL.

KL is that of the model without it and without those removed before; the beginnings of sequences tell which candidates
need all of them (docs/maths.md, Pruning). Knows blocks and sublayers. Knows no weights, no widths and no target.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hubplugin.compress.search import sensitivity
from hubplugin.compress.search.measurements import Added, Dropped, Kept
from hubplugin.errors import PlanError
from hubplugin.limits import REMOVAL_TOKENS
from hubplugin.model import kl_divergence
from hubplugin.model.activations import Batch, copied
from hubplugin.model.architectures.families import Sublayer
from hubplugin.model.block_runner import Model
from hubplugin.plan.choices.pruning_space import FINALISTS, POOL, Space
from hubplugin.progress import progress
from hubplugin.report import Removal

LAYER = "layer"  # as in report.Removal; a sublayer is called by its own name

Candidate = tuple[int, str]  # block; LAYER or a sublayer's name


def drop(
    model: Model, tokens: Tensor, space: Space, counts: Mapping[str, int], kept: Kept[Dropped] | None = None
) -> list[Removal]:
    """Remove as many layers and sublayers of each name as `counts` says, in the order in which they are chosen.

    `tokens` are ids [sequences, tokens]; KL is measured on the first REMOVAL_TOKENS of them. What `kept` has is taken
    from there, and each removal is kept: of the same names, fewer removals are the first of more. Raises PlanError
    where there are not so many.
    """
    kept, total = kept or Kept(), sum(counts.values())
    done = kept.load() or Dropped()
    kept.reused = sum(done.seconds[:total])
    if kept.reused:
        progress(f"shape | {min(total, len(done.removals))} removals measured before, in {kept.reused:.0f} s")
    if len(done.removals) < total:
        beginnings, all_of_them = sensitivity.probe(tokens), sensitivity.first_sequences(tokens, REMOVAL_TOKENS)
        dropping = _Dropping(
            model,
            space,
            _Text(beginnings, model.hidden_states(beginnings), sensitivity.judged),
            _Text(all_of_them, model.hidden_states(all_of_them)),
        )
        while len(done.removals) < total:
            gone = Counter(one.what for one in done.removals)
            done = dropping.one_more(done, [name for name, count in counts.items() if gone[name] < count])
            kept.save(done)
    return list(done.removals[:total])


@dataclass(frozen=True)
class _Text:
    """What KL is measured on."""

    tokens: Tensor  # ids [sequences, tokens]
    base_hidden: Tensor  # the base's last hidden states [sequences, tokens, hidden]
    judged: Callable[[Tensor], Tensor] = lambda hidden: hidden  # those of them that KL is the mean over


@dataclass(frozen=True)
class _Dropping:
    """The base, and what removals are judged by."""

    model: Model
    space: Space
    beginnings: _Text
    whole: _Text

    def one_more(self, done: Dropped, names: Sequence[str]) -> Dropped:
        """The removal after those that are done: a layer or sublayer of one of these names."""
        begun, removals = time.monotonic(), done.removals
        candidates = self.candidates(names, removals)
        if not candidates:
            raise PlanError("prune", "nothing more can go", "remove less")
        added = {(one.block, one.what): one.kl for one in done.added}
        if added:
            candidates = sorted(candidates, key=lambda candidate: added[candidate])[:POOL]
        beginnings = self.kl_without(candidates, removals, self.beginnings)
        finalists = sorted(beginnings, key=lambda candidate: beginnings[candidate])[:FINALISTS]
        kl = self.kl_without(finalists, removals, self.whole)
        (block, name), least = min(kl.items(), key=lambda one: one[1])
        added |= {candidate: value - done.beginnings_kl for candidate, value in beginnings.items()}
        progress(f"shape | without {name} {block}: KL {least:.4f}")
        return Dropped(
            removals=(*removals, Removal(block=block, what=name, kl=least)),
            added=tuple(Added(block=block, what=what, kl=value) for (block, what), value in added.items()),
            beginnings_kl=beginnings[block, name],
            seconds=(*done.seconds, round(time.monotonic() - begun, 2)),
        )

    def _sublayers(self, name: str) -> tuple[Sublayer, ...]:
        """The sublayers that go with a layer or a sublayer."""
        sublayers = self.space.family.sublayers
        return sublayers if name == LAYER else tuple(one for one in sublayers if one.name == name)

    def _removed(self, block: int, removals: Sequence[Removal]) -> list[Sublayer]:
        return [sublayer for one in removals if one.block == block for sublayer in self._sublayers(one.what)]

    def candidates(self, names: Sequence[str], removals: Sequence[Removal]) -> list[Candidate]:
        """What may be removed next: nothing of it is removed yet, and engines know the model that is left."""
        return [
            (block, name)
            for block in range(self.space.base.layers)
            for name in names
            if self._removable(block, self._sublayers(name), removals)
        ]

    def _removable(self, block: int, sublayers: tuple[Sublayer, ...], removals: Sequence[Removal]) -> bool:
        if {one.name for one in self._removed(block, removals)} & {one.name for one in sublayers}:
            return False
        # DeciLM starts with attention, so the first block keeps its own
        return not (self.space.per_layer and block == 0 and self.space.family.sublayers[0] in sublayers)

    def kl_without(
        self, candidates: Sequence[Candidate], removals: Sequence[Removal], text: _Text
    ) -> dict[Candidate, float]:
        """KL in nats per token of the model without the removals and without each candidate alone.

        One pass over the blocks: the activations of a candidate part from the others' at its block.
        """
        model = self.model
        common, activations = model.embed(text.tokens), dict[Candidate, list[Batch]]()
        for index in range(len(model)):
            model.block(index)
            removed = self._removed(index, removals)
            block = sensitivity.block_without(model, index, removed)
            for batches in activations.values():
                model.forward_block(index, batches, block)
            for candidate in (candidate for candidate in candidates if candidate[0] == index):
                activations[candidate] = copied(common)
                without = sensitivity.block_without(model, index, [*removed, *self._sublayers(candidate[1])])
                model.forward_block(index, activations[candidate], without)
            model.forward_block(index, common, block)
            model.free(index)
        hidden = [text.judged(model.final_norm(activations[candidate])) for candidate in candidates]
        kl = kl_divergence.divergences(model, text.judged(text.base_hidden), hidden)
        return dict(zip(candidates, kl, strict=True))
