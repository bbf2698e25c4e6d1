"""Budgets in plans: what is chosen among, what it weighs, what is refused."""

from pathlib import Path
from typing import Any

import pico
import pytest
from plan_helpers import config_json, document, headers

from hubplugin.errors import ManifestError, PlanError
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.plan import planner, table, vllm_support
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import VariantPlan

CT: dict[str, Any] = {"format": "compressed-tensors"}
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def planned(budget: dict[str, Any], prune: bool = False, **step: Any) -> VariantPlan:
    return drafted(budget, prune, **step).estimate


def drafted(budget: dict[str, Any], prune: bool = False, **step: Any) -> DraftPlan:
    config = pico.config(**WIDE)
    steps: list[dict[str, Any]] = [{"method": "gptq", "budget": budget, **step}]
    if prune:
        steps.insert(0, {"method": "prune", "ffn": 0.25})
    return planner.make(document(steps), config_json(config), headers(config)).drafts[0]


def refused(budget: dict[str, Any], **step: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        planned(budget, **step)
    return caught.value


@pytest.mark.parametrize("bits", [2.5, 3.1, 4.0, 4.4, 6.0])
def test_bits_per_weight_are_held_and_used(bits: float) -> None:
    made = planned({"bits_per_weight": bits}, **CT)
    assert 0.97 * bits < made.linear_bits_per_weight <= bits


@pytest.mark.parametrize("more", [0, 10_000, 100_000])
def test_bytes_are_those_of_all_tensors_held_and_used(more: int) -> None:
    limit = planned({"bits_per_weight": 4.2}, **CT).bytes + more
    made = planned({"bytes": limit}, **CT)
    assert 0.97 * limit < made.bytes <= limit
    assert made.bytes == sum(header.bytes for header in made.tensors.values())


def test_the_costs_of_units_are_the_bytes_of_their_tensors() -> None:
    draft = drafted({"bits_per_weight": 4.0}, **CT)
    made, budget = draft.estimate, draft.budget
    assert budget is not None
    for unit in budget.units:
        scheme = made.linear(unit.linears[0].name).scheme
        names = tuple(f"{linear.name}." for linear in unit.linears)
        stored = sum(header.bytes for name, header in made.tensors.items() if name.startswith(names))
        assert scheme and stored == unit.costs[unit.options.index(scheme)]


def test_linears_that_are_stacked_agree() -> None:
    made = planned({"bits_per_weight": 4.0}, **CT)
    assert len({linear.scheme for linear in made.linears}) > 1
    assert all(len({one.scheme for one in members}) == 1 for members in vllm_support.fused(made.linears))


def test_default_options_are_those_of_the_format() -> None:
    assert _bits(drafted({"bits_per_weight": 5.0})) == {4, 8}
    assert _bits(drafted({"bits_per_weight": 5.0}, **CT)) == {2, 3, 4, 8}
    assert _bits(drafted({"bits_per_weight": 3.5, "options": [{"bits": 3}, {"bits": 4}]})) == {3, 4}


def _bits(made: DraftPlan) -> set[int]:
    assert made.budget is not None
    return {scheme.bits for unit in made.budget.units for scheme in unit.options}


def test_ignored_and_overridden_linears_stay_as_they_are_and_count() -> None:
    draft = drafted({"bits_per_weight": 6.0}, ignore=["o_proj"], overrides={"down_proj": {"bits": 8}}, **CT)
    made, budget = draft.estimate, draft.budget
    assert budget is not None
    assert {linear.short for unit in budget.units for linear in unit.linears} == {
        *("q_proj", "k_proj", "v_proj"),
        *("gate_proj", "up_proj"),
    }
    assert made.linear("model.layers.0.self_attn.o_proj").scheme is None
    assert made.linear("model.layers.1.mlp.down_proj").bits == 8
    assert 0.97 * 6 < made.linear_bits_per_weight <= 6


def test_a_plan_promises_what_holds_whatever_is_chosen() -> None:
    asked = {"bits_per_weight": 4.4}
    fours = [{"bits": 4}, {"bits": 4, "group_size": 32}]
    some, all_of_them = planned({**asked, "options": fours}), planned(asked)
    loads = [{each.target: each.loads for each in made.verdicts} for made in (some, all_of_them)]
    assert [each["cpu"] for each in loads] == [True, False]  # 8 bits have no kernel there
    assert [each["cuda tp=1"] for each in loads] == [True, True]


def test_a_plan_with_chosen_schemes_has_just_these() -> None:
    config = pico.config(**WIDE)
    asked = document([{"method": "gptq", "budget": {"bits_per_weight": 4.0}, **CT}])
    whole = planner.make(asked, config_json(config), headers(config))
    limit = whole.drafts[0].budget
    assert limit is not None
    chosen = limit.schemes([0] * len(limit.units))
    made = whole.drafts[0].settle(schemes=chosen)
    assert {linear.name: linear.scheme for linear in made.linears} == chosen


def test_the_table_names_the_options_and_the_size() -> None:
    config = pico.config(**WIDE)
    asked = document([{"method": "gptq", "format": "gptq", "budget": {"bits_per_weight": 4.4}}])
    shown = table.render(planner.make(asked, config_json(config), headers(config)))
    assert "a budget over int4 g128/int4 g32/int8 g128" in shown and " 4.4" in shown


@pytest.mark.parametrize(
    ("budget", "step", "where", "said"),
    [
        ({"bits_per_weight": 3.5}, {}, "budget.bits_per_weight", "2 and 3 bits too"),
        ({"bits_per_weight": 1.5}, CT, "budget.bits_per_weight", "below"),
        ({"bits_per_weight": 9}, CT, "budget.bits_per_weight", "above"),
        ({"bytes": 1000}, {}, "budget.bytes", "below"),
        ({"bits_per_weight": 4.5}, {"bits": 4}, "bits", "a budget chooses it"),
        ({"bits_per_weight": 4.5}, {"symmetric": False}, "symmetric", "a budget chooses it"),
        ({"bits_per_weight": 4.5}, {"engine": "gptqmodel"}, "budget", "gptqmodel has no such setting"),
        ({"bits_per_weight": 4.5}, {"prune": True}, "budget", "pruning changes them"),
        ({"bits_per_weight": 4.5}, {"overrides": {"q_proj": {"bits": 8}}}, "", "of the same stack is not"),
        ({"bits_per_weight": 4.5}, {"overrides": {"layers.*": {"bits": 8}}}, "budget", "leave no linear"),
        ({"bits_per_weight": 4, "options": [{"bits": 3}]}, {"format": "gptq"}, "budget.options", "AutoGPTQ"),
    ],
)
def test_what_is_refused(budget: dict[str, Any], step: dict[str, Any], where: str, said: str) -> None:
    error = refused(budget, **step)
    assert error.where.endswith(where) and said in f"{error.what} {error.fix}"


def test_the_range_that_a_refusal_names_is_accepted() -> None:
    fix = refused({"bits_per_weight": 1.0}, **CT).fix.split()
    for bits in (float(fix[1]), float(fix[3])):
        assert planned({"bits_per_weight": bits}, **CT).linear_bits_per_weight <= bits


def test_a_budget_has_exactly_one_limit(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    for budget in ("{}", "{bytes: 1, bits_per_weight: 4}"):
        path.write_text(
            f"model: a/b\ncalibrate: {{self: true}}\nvariants: {{V: [{{method: gptq, budget: {budget}}}]}}\n"
        )
        with pytest.raises(ManifestError, match="exactly one"):
            loading.load(path)


def test_the_bench_gives_each_budget_the_bytes_of_a_uniform_variant() -> None:
    asked = loading.load(Path(__file__).parents[1] / "bench" / "allocation.yaml")
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    made = {draft.name: draft for draft in planner.make(asked, peek.config, peek.tensors).drafts}
    for name, draft in made.items():
        if draft.budget:
            uniform = made[name.removeprefix("as-")].estimate
            assert 0.995 * uniform.bytes < draft.estimate.bytes <= uniform.bytes


def test_a_quantized_head_counts_in_bytes_and_is_not_chosen_for() -> None:
    config = pico.config(**WIDE, tie_word_embeddings=False)
    for limit in (600_000, 900_000):
        step = {"method": "gptq", "lm_head": True, "budget": {"bytes": limit}, **CT}
        draft = planner.make(document([step]), config_json(config), headers(config)).drafts[0]
        made, budget = draft.estimate, draft.budget
        assert made.head and made.head.bits == 4 and budget
        assert not any(unit.linears[0].short == "lm_head" for unit in budget.units)
        assert 0.97 * limit < made.bytes <= limit
