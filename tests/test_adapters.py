"""Adapters: EoRA by hand and at its optimum, LoRA from the variant itself, folders that PEFT reads, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from plan_helpers import document, headers, published
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from verify_helpers import dequantized, make

from hubplugin import pipeline, report, verification
from hubplugin.checkpoint.adapters import composed, peft_folder
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import adapter_pass
from hubplugin.errors import HubError, PlanError, ServeError
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.hub import resolve, snapshots
from hubplugin.manifest.reading import loading
from hubplugin.manifest.reading.narrowing import narrowed
from hubplugin.manifest.steps.adapter import Eora
from hubplugin.methods import eora
from hubplugin.model.architectures import families
from hubplugin.plan import planner
from hubplugin.recovery import distillation
from hubplugin.recovery.trainable import OwnAdapters
from hubplugin.verification import Outcome

TINY = 1e-9  # damping that changes nothing that is compared
MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 16, sequence_length: 48}}
variants:
  Int4:
    - {{method: gptq, bits: 4, group_size: 32, format: compressed-tensors}}
  EoRA:
    - {{method: eora, of: Int4, rank: 8}}
  LoRA:
    - method: lora
      of: Int4
      rank: 4
      distill: 2
      learning_rate: 0.001
      data: {{self: true, samples: 128, sequence_length: 48, seed: 2}}
  Both:
    - {{method: lora, of: Int4, rank: 8, start: eora, data: {{self: true, samples: 128, sequence_length: 48, seed: 2}}}}
evaluate: {{perplexity: {{self: true, samples: 4, sequence_length: 48, seed: 1}}}}
gate: {{perplexity_ratio: 1000, top1_agreement: 0}}
"""


def step(rank: int, **settings: Any) -> Eora:
    return Eora(**{"method": "eora", "of": "Int4", "rank": rank, "damp": TINY, **settings})


def test_the_direction_that_inputs_excite_most_is_taken_by_hand() -> None:
    """The error is diag(2, 1), inputs are independent of energies 1 and 16: whitened it is diag(2, 4), and one rank is
    spent on the second although it is the smaller error. What is left is the first: 2 squared times 1."""
    target, held, hessian = torch.diag(torch.tensor([3.0, 2.0])), torch.eye(2), torch.diag(torch.tensor([1.0, 16.0]))
    made = eora.compress(target.double(), hessian.double(), step(1), compressed=held, stored=torch.float64)
    assert torch.allclose(made.weight, torch.diag(torch.tensor([1.0, 2.0]).double()), atol=1e-6)
    # of tr(W H W^T) = 9 + 4 * 16
    assert made.loss == pytest.approx(4 / 73, rel=0.01)


def test_full_rank_gives_the_target_back() -> None:
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs in ((5, 8), (8, 5), (6, 6)):
        target, held = (torch.randn(outputs, inputs, generator=generator).double() for _ in range(2))
        x = torch.randn(64, inputs, generator=generator).double()
        made = eora.compress(target, x.T @ x, step(min(outputs, inputs)), compressed=held, stored=torch.float64)
        assert torch.allclose(made.weight, target, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_what_is_left_is_the_sum_of_the_dropped_squared_singular_values(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    target, held = (torch.randn(10, 7, generator=generator).double() for _ in range(2))
    x = torch.randn(100, 7, generator=generator).double() @ torch.randn(7, 7, generator=generator).double()
    hessian = x.T @ x
    made = eora.compress(target, hessian, step(rank), compressed=held, stored=torch.float64)
    left = torch.trace((target - made.weight) @ hessian @ (target - made.weight).T)
    lower = torch.linalg.cholesky(hessian)
    dropped = torch.linalg.svdvals((target - held) @ lower)[rank:].square().sum()
    assert float(left) == pytest.approx(float(dropped), rel=1e-4)


def test_a_weight_without_error_gets_factors_that_add_nothing() -> None:
    weight, x = torch.randn(6, 8), torch.randn(32, 8)
    made = eora.compress(weight, x.T @ x, step(4), compressed=weight, stored=torch.bfloat16)
    assert torch.equal(made.weight, weight) and made.loss == 0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant with two adapters, as `hubplugin run` leaves them."""
    place = tmp_path_factory.mktemp("adapters")
    pico.write(place / "base")
    return make(place, "base", MANIFEST)


def hidden(folder: Path) -> Tensor:
    family = families.match(DenseView(folder).config, "here")
    return open_model(folder, family).hidden_states(pico.tokens(2, 40))


def test_adapters_bring_a_variant_nearer_to_its_base(out: Path) -> None:
    names = ("Int4", "EoRA", "LoRA", "Both")
    kls = {name: report.read(out / name).evaluation.variant.mean_kl for name in names}  # type: ignore[union-attr]
    assert kls["EoRA"] < 0.8 * kls["Int4"] and kls["LoRA"] < 0.96 * kls["Int4"] and kls["Both"] < kls["EoRA"], kls
    for name in ("LoRA", "Both"):
        tuning = report.read(out / name).tuning
        assert tuning is not None and tuning.best_step > 0 and tuning.kl_after < tuning.kl_before


@pytest.mark.parametrize("name", ["EoRA", "LoRA", "Both"])
def test_a_folder_holds_the_adapter_alone_and_its_report_says_both(name: str, out: Path) -> None:
    own, parent = report.read(out / name), report.read(out / "Int4")
    assert own.passed and own.adapter is not None
    held = {path.name for path in (out / name).iterdir()}
    assert held >= {"adapter_config.json", "adapter_model.safetensors", "README.md", "report.json", "manifest.yaml"}
    assert not held & {"config.json", "model.safetensors", "tokenizer.json"}
    size = (out / name / "adapter_model.safetensors").stat().st_size
    assert own.sizes.adapter_bytes == own.adapter.bytes == size
    assert own.sizes.safetensors_bytes == parent.sizes.safetensors_bytes + size
    weights = load_file(out / name / "adapter_model.safetensors")
    assert own.adapter.parameters == sum(weight.numel() for weight in weights.values())
    assert own.sizes.parameters == parent.sizes.parameters + own.adapter.parameters
    assert {tuple(weight.dtype for weight in weights.values())} == {(torch.bfloat16,) * len(weights)}
    config = json.loads((out / name / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Int4"
    assert [line.name for line in own.gate][3] == "variant that it is for"


@pytest.mark.parametrize("name", ["EoRA", "LoRA", "Both"])
def test_peft_computes_what_our_forward_does(name: str, out: Path, tmp_path: Path) -> None:
    """PEFT on a dense copy of the variant, in float32: its own reading of scale, names and shapes."""
    from peft import PeftModel

    view = DenseView(out / "Int4")
    dense = AutoModelForCausalLM.from_pretrained(out.parent / "base", dtype=torch.float32)
    with torch.no_grad():
        for linear in view.quantized:
            dense.get_submodule(linear).weight.copy_(view.get(f"{linear}.weight"))
    before = dense.model(pico.tokens(2, 40).long()).last_hidden_state
    adapted = PeftModel.from_pretrained(dense, str(out / name)).eval()
    after = adapted.base_model.model.model(pico.tokens(2, 40).long()).last_hidden_state
    with composed.composed(out / "Int4", out / name) as both:
        ours = hidden(both)
    assert torch.allclose(after, ours, atol=2e-4)
    assert not torch.allclose(before, after, atol=1e-2)


def test_lora_begins_as_the_variant_itself(out: Path) -> None:
    view = DenseView(out / "Int4")
    family = families.match(view.config, "here")
    model = open_model(out / "Int4", family).load_all()
    ids = pico.tokens(2, 40).long()
    before = model(input_ids=ids).logits
    adapters = OwnAdapters(model, 4, family)
    assert torch.equal(adapters.module(input_ids=ids).logits, before)
    values = adapters.values()
    assert all(not value.any() for name, value in values.items() if name.endswith("lora_B.weight"))
    stored = load_file(out / "LoRA" / "adapter_model.safetensors")
    assert {name: value.shape for name, value in values.items()} == {
        name: value.shape for name, value in stored.items()
    }


def test_lora_begins_at_the_closed_form(out: Path) -> None:
    """Products are EoRA's; a row of A and its column of B are equally long; what is 0 stays so."""
    view = DenseView(out / "Int4")
    family = families.match(view.config, "here")
    adapters = OwnAdapters(open_model(out / "Int4", family).load_all(), 8, family)
    factors = load_file(out / "EoRA" / "adapter_model.safetensors")
    first = next(name for name in factors if name.endswith("lora_B.weight"))
    factors[first][:, 3] = 0
    adapters.begin_at(factors)
    values = adapters.values()
    for name, b in values.items():
        if name.endswith("lora_B.weight"):
            of_a = name.replace("lora_B", "lora_A")
            wanted = factors[name].float() @ factors[of_a].float()
            assert torch.allclose(2 * b @ values[of_a], wanted, atol=1e-5)
            kept = [rank for rank in range(8) if (name, rank) != (first, 3)]
            torch.testing.assert_close(2 * b.norm(dim=0)[kept], values[of_a].norm(dim=1)[kept])
    assert not values[first][:, 3].any() and values[first.replace("lora_B", "lora_A")][3].any()


def rerun(out: Path, **changes: str) -> list[report.Report]:
    """The manifest once more, with some of its text replaced."""
    text = (out.parent / "m.yaml").read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    (out.parent / "m.yaml").write_text(text)
    asked = loading.load(out.parent / "m.yaml")
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    planned = planner.make(asked, peek.config, peek.tensors, revision=peek.sha)
    return pipeline.run(asked, planned, out, dequantized)


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    shutil.copytree(out.parent, tmp_path / "p")
    return tmp_path / "p" / "out"


def test_an_adapter_is_kept_and_made_again_with_the_variant_it_is_for(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rerun(copied)
    assert capsys.readouterr().err.count("kept") == 4
    old = (copied / "EoRA" / "adapter_model.safetensors").read_bytes()
    rerun(copied, **{"bits: 4": "bits: 8"})
    said = capsys.readouterr().err
    assert "EoRA: was made from another variant that it is for" in said
    assert (copied / "EoRA" / "adapter_model.safetensors").read_bytes() != old


def test_other_weights_under_it_make_an_adapter_anew(copied: Path) -> None:
    made = report.read(copied / "EoRA")
    assert made.adapter is not None
    changed = made.adapter.model_copy(update={"weights": dict.fromkeys(made.adapter.weights, "0" * 64)})
    report.write(made.model_copy(update={"adapter": changed}), copied / "EoRA")
    rerun(copied)
    again = report.read(copied / "EoRA").adapter
    assert again is not None and again.weights == made.adapter.weights


def test_publishing_elsewhere_names_the_variant_there_and_keeps_the_weights(copied: Path) -> None:
    weights = (copied / "EoRA" / "adapter_model.safetensors").read_bytes()
    rerun(copied, **{"gate:": 'publish: {repo: "you/{model}-{variant}"}\ngate:'})
    config = json.loads((copied / "EoRA" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "you/base-Int4"
    assert (copied / "EoRA" / "adapter_model.safetensors").read_bytes() == weights
    made = report.read(copied / "EoRA")
    assert made.files["adapter_config.json"] == report_digest(copied / "EoRA" / "adapter_config.json")
    text = card.render(made)
    assert "base_model: you/base-Int4\nbase_model_relation: adapter\n" in text and "library_name: peft\n" in text
    assert "hubplugin serve you/base-Int4 --lora you/base-EoRA" in text
    assert "--enable-lora --max-lora-rank 8 --lora-modules you/base-EoRA=you/base-EoRA" in text


def report_digest(path: Path) -> str:
    from hubplugin.disk import sha256

    return sha256(path)


def test_a_stopped_pass_goes_on_to_the_same_bytes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (copied / "EoRA" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(copied / "EoRA")
    corrected = adapter_pass._correct
    calls: list[int] = []

    def second_fails(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return corrected(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(adapter_pass, "_correct", second_fails)
        rerun(copied)
    assert len(list((copied / ".EoRA.part" / ".blocks").glob("*.safetensors"))) == 1
    rerun(copied)
    assert (copied / "EoRA" / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("name", ["LoRA", "Both"])
def test_a_stopped_training_goes_on_to_the_same_bytes(name: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (copied / name / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(copied / name)
    judge, calls = distillation.Distillation._judge, []

    def third_fails(self: Any, loss: float) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        judge(self, loss)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(distillation.Distillation, "_judge", third_fails)
        rerun(copied)
    with monkeypatch.context() as patched:
        patched.setattr(adapter_pass, "_correct", None)  # the closed form is made once
        rerun(copied)
    assert (copied / name / "adapter_model.safetensors").read_bytes() == weights


def test_a_gate_that_the_variant_failed_fails_its_adapter(copied: Path) -> None:
    made = report.read(copied / "Int4")
    lines = tuple(line.model_copy(update={"passed": False}) if line.name == "quality" else line for line in made.gate)
    asked = loading.load(copied.parent / "m.yaml")
    assert asked.manifest.variants
    from gate_helpers import candidate

    from hubplugin.evaluation import gate

    peek = snapshots.peek(asked.manifest.model, asked.folder)
    plan = planner.make(asked, peek.config, peek.tensors).variants[1]
    assert gate.parent_passed(candidate(copied / "EoRA", plan)).passed
    report.write(made.model_copy(update={"gate": lines}), copied / "Int4")
    line = gate.parent_passed(candidate(copied / "EoRA", plan))
    assert not line.passed and line.detail == "Int4 failed its own gate: quality"


def test_verify_holds_an_adapter_against_its_report_and_the_weights_it_is_for(copied: Path) -> None:
    target, base = str(copied / "EoRA"), str(copied.parent / "base")
    whole = verification.verify(target, base, {verification.QUALITY})
    failed = [line for line in whole.lines if line.outcome is Outcome.FAILED]
    assert not failed, failed
    names = {line.check for line in whole.lines}
    assert names >= {"adapter", "sizes of the adapter", "weights that it is for", "quality", "files as measured"}
    weights = copied / "Int4" / "model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-1] ^= 1
    weights.write_bytes(spoiled)
    (line,) = [one for one in verification.verify(target, base).lines if one.check == "weights that it is for"]
    assert line.outcome is Outcome.FAILED


def test_a_manifest_is_served_with_adapters_beside_their_variant(out: Path) -> None:
    found = resolve.find(str(out.parent / "m.yaml"), (), out)
    assert [(one.name, [adapter.name for adapter in one.adapters]) for one in found[1:]] == [
        ("base-Int4", ["base-EoRA", "base-LoRA", "base-Both"])
    ]
    (one,) = resolve.find(str(out.parent / "m.yaml"), ("LoRA",), out)
    assert one.name == "base-Int4" and [adapter.name for adapter in one.adapters] == ["base-LoRA"]
    with pytest.raises(ServeError, match="is a LoRA adapter, no model"):
        resolve.find(str(out / "EoRA"))


def test_an_adapter_is_no_base(out: Path) -> None:
    with pytest.raises(HubError, match="is a LoRA adapter, no model"):
        snapshots.peek(str(out / "EoRA"), out)


def test_only_an_adapter_brings_the_variant_it_is_for(out: Path) -> None:
    assert list(narrowed(loading.load(out.parent / "m.yaml"), ["EoRA"]).manifest.variants) == ["Int4", "EoRA"]


INT4 = [{"method": "gptq", "bits": 4, "group_size": 64}]


@pytest.mark.parametrize(
    ("variants", "what", "fix"),
    [
        ({"A": [{"method": "eora", "of": "Int5"}]}, "no variant of this manifest is called 'Int5'", "name a variant"),
        ({"Int4": INT4, "A": [{"method": "eora", "of": "Int5"}]}, "is called 'Int5'", "did you mean `Int4`"),
        ({"A": [{"method": "eora", "of": "A"}]}, "A would be an adapter for itself", "name another"),
        ({"A": [{"method": "eora", "of": "Int4"}], "Int4": INT4}, "Int4 stands below A", "move Int4 above A"),
        (
            {"Int4": INT4, "A": [{"method": "eora", "of": "Int4"}], "B": [{"method": "lora", "of": "A"}]},
            "A is an adapter itself",
            "such as Int4",
        ),
        (
            {"Int4": INT4, "A": [*INT4, {"method": "eora", "of": "Int4"}]},
            "1 other steps stand beside it",
            "a variant of their own",
        ),
        (
            {"Int4": INT4, "A": [{"method": "eora", "of": "Int4", "rank": 512}]},
            "512 is more than k_proj has: it is a matrix of 192 x 576",
            "use rank: 192 or less",
        ),
        (
            {"C": [{"method": "codebook", "bits": 4}], "A": [{"method": "eora", "of": "C"}]},
            "serves the codebooks of C by hubplugin's plugin",
            "4-bit codes",
        ),
        (
            {"F": [{"method": "lowrank", "ratio": 0.2}], "A": [{"method": "lora", "of": "F"}]},
            "serves the factors of F by hubplugin's plugin",
            "4-bit codes",
        ),
        (
            {
                "W8A8": [{"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8}],
                "A": [{"method": "eora", "of": "W8A8"}],
            },
            "W8A8 rounds the inputs of its linears to int8",
            "without activation_bits",
        ),
        (
            {"P": [{"method": "prune", "ffn": 0.25}], "A": [{"method": "eora", "of": "P"}]},
            "P is pruned",
            "use method: lora",
        ),
        (
            {"P": [{"method": "prune", "ffn": 0.25}], "A": [{"method": "lora", "of": "P", "start": "eora"}]},
            "P is pruned",
            "use start: zero",
        ),
    ],
)
def test_what_an_adapter_cannot_be_for_is_refused_by_the_plan(
    variants: dict[str, list[dict[str, Any]]], what: str, fix: str
) -> None:
    raw, config = published("smollm2-135m-instruct")
    with pytest.raises(PlanError) as caught:
        planner.make(document(variants), raw, headers(config))
    assert what in caught.value.what and fix in caught.value.fix
    assert caught.value.where.startswith("m.yaml: variants.")


def test_one_sequence_trains_no_adapter() -> None:
    raw, config = published("smollm2-135m-instruct")
    variants = {"Int4": INT4, "A": [{"method": "lora", "of": "Int4", "data": {"self": True, "samples": 1}}]}
    with pytest.raises(PlanError, match="leaves none to hold out"):
        planner.make(document(variants), raw, headers(config))


def test_experts_get_no_adapter() -> None:
    config = pico.config("mixtral")
    from plan_helpers import config_json

    steps = {
        "Int4": [{"method": "gptq", "bits": 4, "group_size": 32}],
        "A": [{"method": "eora", "of": "Int4", "rank": 4}],
    }
    with pytest.raises(PlanError, match="is an expert's"):
        planner.make(document(steps), config_json(config), headers(config))


def test_the_plan_counts_what_is_written(out: Path) -> None:
    asked = loading.load(out.parent / "m.yaml")
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    planned = {variant.name: variant for variant in planner.make(asked, peek.config, peek.tensors).variants}
    plan = planned["EoRA"]
    assert planned["Both"].seconds > max(plan.seconds, planned["LoRA"].seconds / 2)
    assert plan.adapter is not None
    found = peft_folder.Adapter(out / "EoRA").headers
    assert dict(found) == plan.adapter.tensors
    own, both = report.read(out / "EoRA").sizes, plan
    assert own.linear_bits_per_weight == pytest.approx(both.linear_bits_per_weight)
    assert own.model_bits_per_weight == pytest.approx(both.model_bits_per_weight)
    assert own.parameters == both.parameters and own.linear_parameters == both.linear_parameters


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "phi3", "mistral"])
def test_every_dense_family_gets_adapters(kind: str, tmp_path: Path) -> None:
    pico.write(tmp_path / "base", kind)
    text = MANIFEST.replace("samples: 128", "samples: 16")
    made = make(tmp_path, "base", text)
    int4, corrected = (report.read(made / name).evaluation for name in ("Int4", "EoRA"))
    assert corrected.variant.mean_kl < int4.variant.mean_kl  # type: ignore[union-attr]
