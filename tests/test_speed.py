"""Speed in an engine: what rounds come to, by numbers worked out by hand; turns, settings, gate and card."""

import os
import re
from dataclasses import replace
from pathlib import Path

import card_helpers
import pico
import plan_helpers
import psutil
import pytest
from gate_helpers import candidate

from hubplugin import report
from hubplugin.errors import ManifestError, PlanError, ServeError
from hubplugin.evaluation import engine_choice, gate, speed_metrics
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.speed import ceiling, machine, rounds
from hubplugin.evaluation.speed.rounds import Answered, Round, Subject, Turn
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.manifest.reading import loading
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.model.architectures import families
from hubplugin.plan import planner
from hubplugin.plan.costs import components, operations
from hubplugin.plan.costs.operations import Operations
from hubplugin.plan.vllm_support import CPU, TARGETS, Verdict
from hubplugin.speed_record import Machine, Speed, Spread
from serve import cpu_features, throughput, vllm_settings

MACHINE = Machine(processor="some", cores=2, features=("avx2",), memory_bytes=8_000_000_000)
ASKED = Speed(machine=MACHINE, prompt_tokens=3, output_tokens=2, rounds=3)
# blocks 10 FLOPs a token, head 5, attention 1 a pair: 4 tokens are read, 2 predicted from, 1 + 2 + 3 + 4 looked at
BASE = Operations(attention=4, ffn=6, head=5, context=1)
PER_REQUEST = 4 * 10 + 2 * 5 + 10
VARIANT = Operations(attention=4, ffn=3, head=5, context=1)


def turn(rates: tuple[float, ...], ready: float = 10.0, peak: int = 1000, dtype: str | None = "bfloat16") -> Turn:
    answered = tuple(Answered(at, 4, 0.1, 0.01, rate) for at, rate in zip((1, 8), rates, strict=True))
    return Turn("vLLM 1.2 on cpu", dtype, ready, peak, answered, others=0.25)


def measured() -> Speed:
    """Three rounds, in the second of which the machine was half as fast for both."""
    return rounds.summed_up(
        ASKED,
        [
            Round(turn((10, 40), ready=9), turn((12, 60)), ("float32", 6000.0)),
            Round(turn((5, 20), ready=20, peak=1500), turn((7, 28)), ("float32", 3000.0)),
            Round(turn((10, 44), ready=10), turn((11, 77)), ("bfloat16", 6600.0)),
        ],
        BASE,
        VARIANT,
    )


def test_rounds_come_to_medians_with_the_least_and_the_greatest() -> None:
    speed = measured()
    assert speed.base and speed.variant and speed.ceiling and speed.engine == "vLLM 1.2 on cpu, bfloat16"
    assert speed.base.ready_seconds == Spread(median=10, least=9, greatest=20)
    assert speed.base.peak_bytes == Spread(median=1000, least=1000, greatest=1500)
    few, many = speed.base.loads
    assert (few.concurrency, many.concurrency, many.requests) == (1, 8, 4)
    assert many.tokens_per_second == Spread(median=40, least=20, greatest=44)
    assert few.speedup is None and few.first_token_seconds.median == 0.1
    assert speed.base.others_share.median == 0.25


def test_a_speedup_is_that_of_turns_of_the_same_round() -> None:
    speed = measured()
    assert speed.variant and not speed.not_measured
    few, many = speed.variant.loads
    assert few.speedup == Spread(median=1.2, least=1.1, greatest=1.4)
    assert many.speedup == Spread(median=1.5, least=1.4, greatest=1.75)
    assert speed_metrics.speedup(speed) == 1.5  # not 60 / 40, nor 1.5 by chance: of the highest concurrency
    assert speed_metrics.speedup(None) is None and speed_metrics.speedup(ASKED) is None


def test_mfu_is_the_shapes_flops_over_what_the_machine_reached_in_that_round() -> None:
    speed = measured()
    assert speed.base and speed.variant and speed.ceiling
    assert speed.base.flops_per_request == BASE.per_request(3, 2) == PER_REQUEST == 60
    assert speed.ceiling.flops_per_second == Spread(median=6000, least=3000, greatest=6600)
    assert speed.ceiling.dtype == "float32"  # in two rounds of three
    many = speed.base.loads[1]
    assert many.mfu is not None  # tokens per second / 2 tokens a request * 60 FLOPs / ceiling
    assert (many.mfu.median, many.mfu.least, many.mfu.greatest) == pytest.approx((0.2, 0.2, 0.2))
    assert speed.variant.flops_per_request == 4 * 7 + 2 * 5 + 10


def test_without_a_known_dtype_there_is_no_mfu_and_no_ceiling() -> None:
    made = Round(turn((1, 2), dtype=None), turn((1, 2), dtype=None), None)
    speed = rounds.summed_up(ASKED, [made], BASE, VARIANT)
    assert speed.ceiling is None and speed.base and speed.base.loads[0].mfu is None
    assert speed.engine == "vLLM 1.2 on cpu"


def subject(name: str, why: str = "") -> Subject:
    verdicts = [Verdict(target, not why, why) for target in TARGETS]
    return Subject(name, Path(name), verdicts, BASE, 100)


def test_base_and_variant_take_turns_and_the_order_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "fastest", lambda dtypes, device: ("float32", 1000.0))
    order: list[str] = []

    def take(one: Subject, settings: Settings, number: int) -> Turn:
        order.append(f"{one.name} {number}")
        return turn((1.0, 2.0))

    speed = rounds.measure(subject("base"), subject("v"), Settings(rounds=3), take)
    assert order == ["v 0", "base 0", "base 1", "v 1", "v 2", "base 2"]
    assert speed.variant and speed.variant.loads[0].speedup == Spread(median=1, least=1, greatest=1)


def test_what_vllm_cannot_load_here_is_said_and_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "turn", lambda *_: pytest.fail("an engine was started"))
    refused = subject("v", "no CPU kernel for 3-bit weights")
    with pytest.raises(ServeError, match="no CPU kernel for 3-bit weights"):
        engine_choice.take_turn(refused, Settings(), 0)
    speed = rounds.measure(subject("base"), refused, Settings(rounds=2), engine_choice.take_turn)
    assert "no CPU kernel for 3-bit weights" in speed.not_measured and speed.base is speed.variant is None
    assert speed.machine.cores >= 1 and speed.rounds == 2


def test_why_nothing_was_measured_names_no_folder() -> None:
    def take(one: Subject, settings: Settings, number: int) -> Turn:
        raise ServeError(one.name, f"cannot read {one.folder}/config.json", "nothing")

    variant = replace(subject("v"), folder=Path("/some/where/.v.part"))
    speed = rounds.measure(subject("base"), variant, Settings(), take)
    assert speed.not_measured == "cannot read v/config.json (v)"


def test_what_an_engine_lacks_of_this_processor_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature, flags=None: False)
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    needs = Verdict(CPU, True, "", "an x86 CPU with AVX-512", ("AVX-512",))
    with pytest.raises(ServeError, match="needs an x86 CPU with AVX-512, and this one has no AVX-512"):
        engine_choice.take_turn(Subject("v", Path("v"), [needs], BASE, 100), Settings(), 0)


def test_a_pico_models_operations_are_those_of_its_shapes() -> None:
    dims = planned([plan_helpers.PRUNE]).drafts[0].recipe.base.dims
    work = operations.of(families.FAMILIES["llama"], dims, {})
    # 2 layers of hidden 64, 2 heads and 1 key/value head of 32, 128 channels; 288 rows of the embedding
    assert work.attention == 2 * 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64)
    assert work.ffn == 2 * 2 * 3 * 64 * 128 and work.head == 2 * 288 * 64
    assert work.context == 2 * 4 * 2 * 32
    assert work.per_token == work.attention + work.ffn + work.head


def test_of_experts_count_those_that_a_token_goes_to() -> None:
    config = pico.config("mixtral")
    made = planned([{"method": "gptq", "bits": 8, "group_size": 32}], "mixtral")
    base = made.drafts[0].recipe.base
    work = operations.of(base.family, base.dims, base.config)
    assert config.num_experts_per_tok == 2
    assert work.ffn == 2 * 2 * (2 * 3 * 64 * 128 + 4 * 64)  # two of four, and the router


def planned(steps, model_type: str = "llama", **changes):
    config = pico.config(model_type)
    document = plan_helpers.document(steps, **changes)
    return planner.make(document, plan_helpers.config_json(config), plan_helpers.headers(config))


def test_components_add_up_to_the_whole_model() -> None:
    made = planned([plan_helpers.PRUNE, {"method": "gptq", "bits": 4, "group_size": 32}])
    variant, base = made.variants[0], made.drafts[0].recipe.base
    work = operations.of(variant.family, variant.dims, variant.config)
    parts = {one.name: one for one in components.of(variant.family, variant.tensors, variant.quantized, work)}
    assert list(parts) == ["embeddings and head", "attention", "FFN", "norms", "scales"]
    assert sum(part.bytes for part in parts.values()) == variant.bytes
    assert sum(part.parameters for part in parts.values()) == variant.parameters
    assert sum(part.flops_per_token for part in parts.values()) == work.per_token
    assert parts["FFN"].bytes * 8 == 4 * parts["FFN"].parameters and parts["scales"].parameters == 0
    assert parts["norms"].parameters == 64 * (2 * 2 + 1)
    whole = components.of(base.family, base.tensors, (), operations.of(base.family, base.dims, base.config))
    assert sum(part.bytes for part in whole) == base.bytes and [part.name for part in whole] == list(parts)[:-1]


def test_the_machine_is_described_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU 9\nflags\t\t: fma avx2 sse amx_int8\n")
    made = machine.describe(tmp_path / "cpuinfo")
    assert made.processor == "Some CPU 9" and made.features == ("avx2", "fma", "amx_int8")
    assert made.cores == len(os.sched_getaffinity(0)) and made.memory_bytes == psutil.virtual_memory().total
    assert os.uname().nodename not in made.model_dump_json()
    assert machine.describe(tmp_path / "none").processor


def test_the_ceiling_is_that_of_the_type_in_which_products_are_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ceiling.flops_per_second("float32", "cpu", 64) > 0
    reached = {"bfloat16": 3.0, "float32": 7.0}
    monkeypatch.setattr(ceiling, "flops_per_second", lambda dtype, device, size: reached[dtype])
    assert ceiling.fastest(("bfloat16", "float32"), "cpu") == ("float32", 7.0)


def test_prompts_are_exact_and_the_same_for_the_same_round() -> None:
    load = throughput.Load(2, 3, 5, 4)
    first = throughput.prompts(load, 50, "0 2")
    assert first == throughput.prompts(load, 50, "0 2") != throughput.prompts(load, 50, "1 2")
    assert [len(prompt) for prompt in first] == [5, 5, 5] and all(0 <= token < 50 for row in first for token in row)


METRICS = """# HELP vllm:time_to_first_token_seconds first
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 3.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 3.0
vllm:request_time_per_output_token_seconds_sum{engine="0"} 0.3
vllm:request_time_per_output_token_seconds_count{engine="0"} 3.0
vllm:e2e_request_latency_seconds_sum{engine="0"} 6e+00
vllm:e2e_request_latency_seconds_count{engine="0"} 3.0
vllm:generation_tokens_total{engine="0"} 192.0
"""


def test_means_are_those_between_two_looks_at_vllms_histograms() -> None:
    before = throughput.histograms("")
    after = throughput.histograms(METRICS)
    assert after[throughput.GENERATED][0] == 192
    means = throughput.means(before, after)
    assert means == pytest.approx({"first_token": 0.5, "per_token": 0.1, "whole": 2.0})
    with pytest.raises(ServeError, match="counted nothing"):
        throughput.means(after, after)


def test_settings_have_defaults_and_a_short_form(tmp_path: Path) -> None:
    def asked(text: str) -> Settings | None:
        path = tmp_path / "m.yaml"
        path.write_text(
            "model: o/m\ncalibrate: {self: true}\nvariants: {V: [{method: gptq, bits: 4}]}\n"
            f"evaluate: {{perplexity: {{self: true, seed: 1}}{text}}}\n",
            encoding="utf-8",
        )
        evaluate = loading.load(path).manifest.evaluate
        assert evaluate
        return evaluate.speed

    assert asked("") is asked(", speed: false") is None
    assert asked(", speed: true") == asked(", speed: {}") == Settings()
    assert (Settings().prompt_tokens, Settings().output_tokens, Settings().rounds) == (128, 64, 3)
    assert Settings().concurrency == (1, 8, 32)
    for text, what, fix in (
        (", speed: 3", "3 is not what it takes", "write `true`, or a mapping of what vLLM is asked"),
        (", speed: {concurrency: [8, 1]}", "is not in rising order", r"write \[1, 8\]"),
        (", speed: {round: 2}", "'round' is no key here", "did you mean `rounds`"),
        (", speed: {rounds: 0}", "0 is not what it takes", "from 1 to 20"),
    ):
        with pytest.raises(ManifestError) as error:
            asked(text)
        assert what in error.value.what and "evaluate.speed" in error.value.where, error.value
        assert re.search(fix, error.value.fix), error.value.fix


def test_a_threshold_needs_a_speed_and_lengths_the_models_context() -> None:
    text = {"self": True, "seed": 1, "sequence_length": 64}
    with pytest.raises(ValueError, match="nothing measures a speed"):
        plan_helpers.document([plan_helpers.PRUNE], evaluate={"perplexity": text}, gate={"tokens_per_second": 1.2})
    fits = {"perplexity": text, "speed": {"prompt_tokens": 200, "output_tokens": 56}}
    assert planned([plan_helpers.PRUNE], evaluate=fits, gate={"tokens_per_second": 1.2})
    with pytest.raises(PlanError, match=r"257 tokens are longer than this model's context of 256"):
        planned([plan_helpers.PRUNE], evaluate={**fits, "speed": {"prompt_tokens": 200, "output_tokens": 57}})


def test_the_gate_holds_the_speedup_at_the_highest_concurrency_against_its_threshold() -> None:
    def line(speed: Speed | None, **thresholds: float) -> report.GateLine | None:
        return gate.speed(candidate(speed=speed, thresholds=Thresholds(**thresholds)))

    assert line(measured()) is None and line(None) is None
    passed, failed = line(measured(), tokens_per_second=1.5), line(measured(), tokens_per_second=1.51)
    assert passed and passed.passed and failed and not failed.passed
    assert passed.detail == "1.50 times the base's output tokens per second, 8 at once; at least 1.5 is asked for"
    unknown = line(ASKED.model_copy(update={"not_measured": "no kernel"}), tokens_per_second=1.1)
    assert unknown and not unknown.passed and "not measured: no kernel" in unknown.detail
    limits = Thresholds(tokens_per_second=9)  # is no threshold of quality
    assert gate.quality(candidate(thresholds=limits)).detail == "the manifest sets no threshold"


def test_every_row_shows_a_number_of_the_record_and_the_gates_key_is_one() -> None:
    speed = measured()
    assert speed.base and speed.variant
    for metric, record in (
        *((metric, speed.variant) for metric in speed_metrics.SERVED),
        *((metric, speed.variant.loads[0]) for metric in speed_metrics.SPEED),
    ):
        found = speed_metrics.spread(metric.key, record)
        assert found and metric.value(record, record) == found.median and metric.card
    rows = {metric.key: metric for metric in speed_metrics.SPEED}
    assert rows[speed_metrics.GATED].better == GATE_KEYS[speed_metrics.GATED].better


def test_the_card_shows_both_models_and_what_they_ran_on() -> None:
    text = card.render(card_helpers.report(speed=measured()))
    assert "| load time, start to ready | 10.0 s (9.0 s to 20.0 s) | 10.0 s |" in text
    assert "| share of the cores that other processes took meanwhile | 25.00 % | 25.00 % |" in text
    assert "| output tokens per second, 8 at once | 40.0 (20.0 to 44.0) | 60.0 (28.0 to 77.0) |" in text
    assert "| speed-up over the base, round by round, 8 at once | | 1.50 (1.40 to 1.75) |" in text
    assert "Engine: vLLM 1.2 on cpu, bfloat16. Machine: some, 2 cores with avx2, 8.00 GB of memory." in text
    assert "| time to first token, 8 at once | 100 ms | 100 ms |" in text
    assert "Medians of 3 rounds" in text and "6.00 kFLOP/s, which dense products in float32 reach" in text
    assert "## Speed" not in card.render(card_helpers.report())


def test_the_card_says_why_nothing_was_measured() -> None:
    text = card.render(card_helpers.report(speed=ASKED.model_copy(update={"not_measured": "vLLM on cpu: no kernel"})))
    assert "Its speed was not measured: vLLM on cpu: no kernel." in text and "| load time" not in text


def test_the_card_has_a_line_for_each_component() -> None:
    made = card_helpers.report()
    parts = (
        report.Component(name="attention", parameters=2_000_000, bytes=1_000_000, flops_per_token=4_000_000),
        report.Component(name="scales", parameters=0, bytes=250_000, flops_per_token=0),
    )
    whole = (report.Component(name="attention", parameters=2_000_000, bytes=4_000_000, flops_per_token=4_000_000),)
    sizes = made.sizes.model_copy(update={"components": parts, "flops_per_token": 5_500_000})
    base = made.sizes_base.model_copy(update={"components": whole, "flops_per_token": 11_000_000})
    text = card.render(card_helpers.report(sizes=sizes, sizes_base=base))
    assert "| attention | 2.00M | 2.00M | 4.00 MB | 1.00 MB | 16.00 | 4.00 | 4.00 MFLOP | 4.00 MFLOP |" in text
    assert "| scales | | | | 250.00 kB | | | | |" in text
    assert "| FLOPs per generated token, linears and output head | 11.00 MFLOP | 5.50 MFLOP | 2.00 |" in text
