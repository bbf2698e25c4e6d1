"""The card says what the report says, in the Hub's vocabulary, and treats every foreign string as data."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from card_helpers import report
from huggingface_hub import ModelCard

from hubplugin import front_matter
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.metrics import QUALITY, SIZES
from hubplugin.report import (
    Base,
    Evaluation,
    GateLine,
    LinearResult,
    PrunedBlock,
    Quality,
    RecoveredBlock,
    Recovery,
    Report,
    Shaping,
    Sizes,
    Tokens,
)

TEMPLATE = Path(card.__file__).with_name(card.TEMPLATE)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


def body(text: str) -> str:
    """Everything under the front matter."""
    return text.split("\n---\n", 1)[1]


def other_report() -> Report:
    """A report in which every number differs from the first one's."""
    tokens = Tokens(source="own samples", sequences=31, tokens_per_sequence=257, seed=9, sha256="c" * 64)
    return report(
        hubplugin="7.7.7",
        created="1999-11-29T21:58:57Z",
        variant="V",
        model_name="other",
        repo="ns/other",
        base=Base(repo="ns/base", revision="b" * 40, on_hub=True, architecture="LlamaForCausalLM", model_type="llama"),
        manifest_text="model: ns/base\n",
        manifest_sha256="f" * 64,
        steps=({"method": "prune", "ffn": 0.5, "damp": 0.05}, {"method": "gptq", "bits": 8, "group_size": 128}),
        widths={"intermediate_size": (2300, 1150)},
        calibration=tokens,
        linears=(LinearResult(name="x", method="gptq", loss=0.4567, damp=0.33),),
        sizes_base=Sizes(
            safetensors_bytes=777_000,
            parameters=555_000,
            linear_parameters=333_000,
            linear_bits_per_weight=32.5,
            model_bits_per_weight=33.25,
        ),
        sizes=Sizes(
            safetensors_bytes=111_500,
            parameters=101_900,
            linear_parameters=91_400,
            linear_bits_per_weight=8.6,
            model_bits_per_weight=9.9,
        ),
        seconds={"pull": 6.5},
        peak_memory_bytes=45_600,
        versions={"torch": "8.8.8"},
        evaluation=Evaluation(
            tokens=tokens,
            protocol="whole",
            predicted_tokens=60111,
            base=Quality(perplexity=111.9, perplexity_stderr=2.2),
            variant=Quality(perplexity=199.4, perplexity_stderr=5.7, mean_kl=0.0345, p99_kl=0.678, top1_agreement=0.6),
        ),
    )


def test_the_hubs_own_parser_reads_the_front_matter_and_the_results() -> None:
    made = report()
    data = ModelCard(card.render(made)).data
    assert data.base_model == "ns/base"
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en"], "transformers")
    assert data.datasets == ["ns/words"]
    assert {"gptq", "4-bit", "int4", "vllm", "quantized", "pruned", "conversational"} <= set(data.tags)
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"perplexity": 23.87, "kl_divergence": 0.1523, "top1_agreement": 0.8412}
    assert data.to_dict()["compression"]["ratio_disk"] == pytest.approx(24_190_000 / 9_310_000, abs=1e-4)
    assert data.to_dict()["compression"]["baseline"] == {"repo": "ns/base", "revision": "a" * 40, "bytes": 24_190_000}


def test_a_number_that_two_different_reports_share_comes_from_the_template() -> None:
    constant = set(NUMBER.findall(TEMPLATE.read_text()))
    for paper in card.PAPERS.values():
        constant |= set(NUMBER.findall(paper))
    for metric in (*QUALITY, *SIZES):  # their labels are part of the card's fixed text
        constant |= set(NUMBER.findall(metric.card.label)) if metric.card else set()
    first, second = (set(NUMBER.findall(body(card.render(made)))) for made in (report(), other_report()))
    assert len(first) > 40
    assert first & second <= constant | {"1", "2"}  # the steps' own numbering


def test_every_measured_number_of_the_report_stands_on_the_card() -> None:
    text = body(card.render(report()))
    for shown in ("9.31 MB", "24.19 MB", "2.60", "4.51", "7.22", "1024", "768", "23.87", "20.46", "0.1523", "1.870"):
        assert shown in text
    assert "84.12 %" in text and "± 0.37" in text and "1.1667" in text


def test_without_an_evaluation_there_is_no_quality_table_and_no_result() -> None:
    text = card.render(report(evaluation=None))
    assert "## Quality" not in text and "perplexity" not in text
    assert "| quality | not measured |" in text
    assert ModelCard(text).data.eval_results is None


def test_a_pruned_only_model_claims_no_relation_and_no_quantization() -> None:
    made = report(steps=({"method": "prune", "ffn": 0.25, "damp": 0.01},))
    data = ModelCard(card.render(made)).data.to_dict()
    assert "base_model_relation" not in data and data["base_model"] == "ns/base"
    assert "pruned" in data["tags"] and not {"gptq", "quantized"} & set(data["tags"])
    assert "bits" not in data["compression"]
    assert "AutoGPTQ" not in card.render(made)


def recovery(**changes: Any) -> Recovery:
    fields: dict[str, Any] = {
        "trained": "the blocks one by one, then all weights", "tokens": 581_632, "held_out_tokens": 8192, "steps": 284,
        "best_step": 266, "stopped": "all steps were made", "seconds": {"blocks": 71.5, "distillation": 301.0},
        "blocks": (RecoveredBlock(index=0, loss_before=0.0156, loss_after=0.0128),), "kl_before": 0.03141,
        "kl_blocks": 0.02278, "kl_after": 0.01713,
    }  # fmt: skip
    return Recovery(**{**fields, **changes})


STEPS = ({"method": "prune", "ffn": 0.25}, {"method": "recover", "blocks": 2, "distill": 1})


def test_what_recovery_did_stands_on_the_card() -> None:
    text = card.render(report(steps=STEPS, recovery=recovery()))
    assert "trained back towards the base" in text and "were not trained back" not in text
    for shown in (
        "0.03141",
        "0.02278",
        "0.01713",
        "581632",
        "8192",
        "284",
        "266",
        "5.0 min",
        "of the calibration data",
    ):
        assert shown in text.split("## Recovery")[1].split("## ")[0], shown
    assert ModelCard(text).data.to_dict()["base_model_relation"] == "finetune"
    assert card.PAPERS["recover"] in text
    words = Tokens(source="files [a].txt", sequences=9, tokens_per_sequence=8, seed=77, sha256="9" * 64)
    other = card.render(report(steps=(*STEPS, GPTQ), recovery=recovery(kl_blocks=None, steps=0, data=words)))
    section = other.split("## Recovery")[1].split("## ")[0]
    assert "files \\[a\\].txt" in section and "9" * 64 in section and "77" in section
    assert "hidden states" not in section and "steps of distillation" not in section
    assert "as written, before quantization" in section


def test_what_tuning_did_stands_on_the_card() -> None:
    steps = (GPTQ, {"method": "tune", "blocks": 2, "distill": 1, "rounding": True})
    text = card.render(report(steps=steps, tuning=recovery(moved_codes=0.0423)))
    assert "what stands beside its codes trained towards the base" in text.split("\n## ")[0]
    section = text.split("## Tuning")[1].split("\n## ")[0]
    for shown in ("as quantized | 0.03141", "0.02278", "| as written | 0.01713", "581632", "8192", "5.0 min", "4.2"):
        assert shown in section, shown
    assert "before quantization" not in section and "## Recovery" not in text
    assert ModelCard(text).data.to_dict()["base_model_relation"] == "quantized"
    assert card.PAPERS["tune"] in text
    fixed = card.render(report(steps=steps, tuning=recovery())).split("## Tuning")[1]
    assert "rounded otherwise" not in fixed


GPTQ = {"method": "gptq", "bits": 4, "group_size": 64, "ignore": [], "overrides": {}, "activation_bits": None}


def test_the_card_names_the_format_and_what_transformers_needs_for_it() -> None:
    ours = card.render(report(steps=({**GPTQ, "format": "gptq"},)))
    assert "AutoGPTQ's format" in ours and "needs the gptqmodel package" in ours
    packed = card.render(report(steps=({**GPTQ, "format": "compressed-tensors"},)))
    assert "compressed-tensors' format" in packed and "AutoGPTQ" not in packed
    assert "newer than 0.17" not in packed and "W8A8" not in packed and "some of them otherwise" not in packed
    assert ModelCard(packed).data.to_dict()["compression"]["format"] == "compressed-tensors"
    assert "overrides" not in packed.split("How it was made")[1], "what a step leaves empty is not listed"


def test_the_card_says_where_single_linears_differ() -> None:
    own = {"down_proj": {"bits": 3}, "o_proj": {"bits": 8, "activation_bits": 8}}
    text = card.render(report(steps=({**GPTQ, "format": "compressed-tensors", "overrides": own},)))
    assert "(some of them otherwise, see below)" in text and "newer than 0.17" in text
    assert "round their inputs to int8" in text and "activation_bits" in text.split("How it was made")[1]


def test_a_local_base_is_not_passed_off_as_a_repo() -> None:
    local = report().base.model_copy(update={"on_hub": False, "revision": None})
    data = ModelCard(card.render(report(base=local))).data.to_dict()
    assert "base_model" not in data and "base_model_relation" not in data


def test_fallbacks_are_listed_and_their_absence_is_said() -> None:
    assert "Fallbacks: none" in card.render(report())
    fallen = LinearResult(
        name="model.layers.0.mlp.up_proj", method="gptq", loss=0.5, damp=0.1, fallback="plain rounding"
    )
    text = card.render(report(linears=(fallen,)))
    assert "Fallbacks: 1 of 1" in text and "`model.layers.0.mlp.up_proj`: plain rounding" in text


def test_the_five_worst_linears_are_named_worst_first() -> None:
    rows = re.findall(r"\| `model\.layers\.(\d)", card.render(report()))
    assert rows == ["6", "5", "4", "3", "2"]


def test_the_manifest_is_whole_and_cannot_leave_its_fence() -> None:
    manifest = "model: x\n# ```\n# ````\n## not a heading\n"
    text = card.render(report(manifest_text=manifest))
    assert f"`````yaml\n{manifest}`````\n" in text


HOSTILE = (
    "a\n---\nlicense: mit",
    "{{ 7 * 7 }}{% for x in y %}",
    "<script>alert(1)</script>",
    "**bold** [link](http://x) | cell | `tick`",
    "...\nkey: !!python/object/apply:os.system ['true']",
)


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_strings_stay_data(evil: str) -> None:
    flat = " ".join(evil.split())
    base = Base(
        repo=evil,
        revision=None,
        on_hub=True,
        architecture=evil,
        model_type="llama",
        licence="other",
        licence_name=evil,
        licence_link=evil,
        languages=(evil,),
    )
    made = report(
        base=base,
        model_name=evil,
        repo=evil,
        linears=(LinearResult(name=evil, method="gptq", loss=0.1, damp=0.1, fallback=evil),),
        gate=(GateLine(name=evil, passed=True, detail=evil),),
    )
    text = card.render(made)
    front, rest = text.removeprefix("---\n").split("\n---\n", 1)
    data = yaml.safe_load(front)
    assert data["license"] == "other"
    assert (data["license_name"], data["license_link"]) == (flat, flat)
    assert "language" not in data, "it is no code, and the Hub would refuse the card"
    assert data["base_model"] == flat and data["model-index"][0]["name"] == flat
    outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", rest))
    assert "<script>" not in outside_code and "[link]" not in outside_code and "**bold**" not in outside_code
    assert "\n---\n" not in rest and "49" not in NUMBER.findall(rest)
    widths = {line.count(" | ") for line in rest.splitlines() if line.startswith("| `") and "down" not in line}
    assert widths <= {2, 3}  # no cell was added to a table of three or of four columns


def test_duties_of_the_licence_are_repeated() -> None:
    llama = report().base.model_copy(update={"licence": "llama3.1", "gated": True})
    text = card.render(report(base=llama))
    assert "Built with Llama." in text and "The base is gated" in text
    assert "Built with Llama" not in card.render(report())


def test_several_licences_stay_a_list() -> None:
    both = report().base.model_copy(update={"licence": "mit, apache-2.0"})
    assert ModelCard(card.render(report(base=both))).data.to_dict()["license"] == ["mit", "apache-2.0"]


def test_the_same_report_always_gives_the_same_card() -> None:
    assert card.render(report()) == card.render(report())


def test_odd_numbers_are_shown_without_exponents_and_without_failing() -> None:
    evaluation = report().evaluation
    assert evaluation is not None
    odd = evaluation.variant.model_copy(update={"perplexity": float("inf"), "mean_kl": 0.0, "p99_kl": 1.234e-6})
    text = card.render(report(evaluation=evaluation.model_copy(update={"variant": odd})))
    assert "inf" in text and "0.000001234" in text


def test_blocks_that_differ_in_kv_heads_alone_differ() -> None:
    kept = [PrunedBlock(source=index, heads=4, kv_heads=groups, ffn=128) for index, groups in enumerate((1, 2))]
    shaping = Shaping(predicted_kl=0.01, tokens=4096, removed=(), blocks=tuple(kept))
    made = report(steps=({"method": "prune", "ratio": 0.2, "layout": "per-layer"},), shaping=shaping, widths={})
    assert card.metadata(made)["library_name"] == "vllm"
    text = card.render(made)
    assert "with whole attention heads pruned" in text and "whose blocks differ" in text
    assert "| 1 | 1 | 4 | 2 | 128 |" in text


def test_what_is_behind_the_front_matter() -> None:
    assert front_matter.behind("---\na: 1\n---\n# Title\n\n---\nrest\n") == "# Title\n\n---\nrest\n"
    assert front_matter.behind("# No head\n\n---\nrest\n") == "# No head\n\n---\nrest\n"
    assert front_matter.behind("---\nnever closed\n") == "---\nnever closed\n"


def test_results_on_two_texts_stay_apart_where_a_client_writes_the_card_again() -> None:
    """huggingface_hub groups results by type, configuration and split of a dataset, under the first one's name."""
    made = report()
    assert made.evaluation is not None
    other = made.evaluation.model_copy(
        update={"tokens": made.evaluation.tokens.model_copy(update={"source": "files speeches.txt", "dataset": None})}
    )
    third = other.model_copy(update={"tokens": other.tokens.model_copy(update={"source": "files letters.txt"})})
    evaluation = made.evaluation.model_copy(update={"further": (other, third)})
    read = ModelCard(card.render(made.model_copy(update={"evaluation": evaluation})))
    names = [result.dataset_name for result in read.data.eval_results]
    assert len(set(names)) == 3
    assert [result.dataset_name for result in ModelCard(str(read)).data.eval_results] == names


def test_a_step_is_written_as_in_the_manifest_and_only_what_was_given() -> None:
    data = {"dataset": None, "files": ["a.txt"], "self_": False, "samples": 24, "column": None}
    own = {"dataset": None, "files": None, "self_": True, "seed": 2}
    first, second = {"method": "gptq", "bits": 3, "ignore": []}, {"method": "tune", "data": data, "rounding": False}
    text = card.render(report(steps=(first, second)))
    assert "- Step 1: `gptq` with `bits` `3`\n" in text
    assert "`tune` with `data` `{files: [a.txt], self: false, samples: 24}`, `rounding` `False`\n" in text
    text = card.render(report(steps=(first, {**second, "data": own})))
    assert "`data` `{self: true, seed: 2}`" in text
