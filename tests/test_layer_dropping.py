"""Which layers go: the cheapest ones, found without showing whole sequences to every candidate."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import torch

from hubplugin.compress.search import layer_dropping, sensitivity
from hubplugin.compress.search.layer_dropping import LAYER, Candidate
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.limits import PROBE_TOKENS
from hubplugin.model import kl_divergence
from hubplugin.model.architectures import families
from hubplugin.report import Removal

LAYERS, LENGTH = 30, 512


def space(layers: int) -> SimpleNamespace:
    return SimpleNamespace(family=families.FAMILIES["llama"], base=SimpleNamespace(layers=layers), per_layer=False)


@pytest.fixture
def model() -> SimpleNamespace:
    return SimpleNamespace(hidden_states=lambda tokens: tokens)


@pytest.mark.parametrize("seed", range(4))
def test_the_cheapest_layers_go_and_few_see_whole_sequences(model, monkeypatch, seed: int) -> None:
    """KL is a sum of costs; beginnings are harder than the rest, and need other layers a little."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.rand(LAYERS, generator=generator) + 0.1
    beginning = 3 * (whole + 0.02 * torch.rand(LAYERS, generator=generator))
    seen = []

    def kl(self, candidates: Sequence[Candidate], removals: Sequence[Removal], text: Any) -> dict[Candidate, float]:
        length = text.tokens.shape[1]
        gone, cost = [one.block for one in removals], whole if length == LENGTH else beginning
        seen.extend([length] * len(candidates))
        return {(block, name): float(cost[[*gone, block]].sum()) for block, name in candidates}

    monkeypatch.setattr(layer_dropping._Dropping, "kl_without", kl)
    removals = layer_dropping.drop(model, torch.zeros(8, LENGTH), space(LAYERS), {LAYER: 6})
    least = whole.argsort()[:6].tolist()
    assert [one.block for one in removals] == least
    assert [one.kl for one in removals] == pytest.approx(whole[least].cumsum(0).tolist(), rel=1e-5)
    assert sum(seen) < sum(LENGTH * (LAYERS - gone) for gone in range(6)) / 3


@pytest.mark.parametrize("sequences", [1, 3, 8])
def test_the_kl_of_what_was_chosen_is_that_of_all_sequences(pico_folder, sequences: int) -> None:
    whole = open_model(pico_folder, families.FAMILIES["llama"])
    ids = pico.tokens(sequences, 16)
    (removal,) = layer_dropping.drop(whole, ids, space(len(whole)), {LAYER: 1})
    base, batches = whole.hidden_states(ids), whole.embed(ids)
    for index in range(len(whole)):
        whole.block(index)
        if index != removal.block:
            whole.forward_block(index, batches)
    (exact,) = kl_divergence.divergences(whole, base, [whole.final_norm(batches)])
    assert removal.kl == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("sequences", "length", "probe"),
    [(64, 512, (8, 128)), (4, 2048, (4, 256)), (2, 100, (2, 100)), (64, 32, (32, 32)), (1, 4096, (1, 1024))],
)
def test_probes_are_beginnings_of_many_sequences(sequences: int, length: int, probe: tuple[int, int]) -> None:
    ids = torch.arange(sequences * length).reshape(sequences, length)
    taken = sensitivity.probe(ids)
    assert taken.shape == probe and torch.equal(taken, ids[: probe[0], : probe[1]])
    assert taken.numel() <= PROBE_TOKENS
