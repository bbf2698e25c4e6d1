"""What a plan says where a gate asks for a speed that vLLM cannot have on this machine."""

from pathlib import Path

import pico
import plan_helpers
import pytest

from hubplugin import api, pipeline
from hubplugin.errors import ServeError
from hubplugin.plan import draft, planner, table
from hubplugin.plan.draft import Plan
from serve import cpu_features, vllm_settings

INT4 = {"method": "gptq", "bits": 4, "group_size": 32}
W8A8 = {"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8}
VARIANTS = {"Int4": [INT4], "Int8": [W8A8], "Int3": [INT4 | {"bits": 3}], "Thin": [plan_helpers.PRUNE]}
NEEDS = "vLLM on cpu: needs an x86 CPU with VNNI, and this one has no VNNI"
EVALUATE = {"perplexity": {"self": True, "seed": 1, "sequence_length": 64}, "speed": True}


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a CPU build of vLLM, without what its kernels for int8 need."""
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    monkeypatch.setattr(cpu_features, "has", lambda feature, flags=None: feature != cpu_features.VNNI)


def planned(gate: dict[str, object], variants: dict[str, list[dict[str, object]]] = VARIANTS) -> Plan:
    config = pico.config("llama")
    document = plan_helpers.document(variants, evaluate=EVALUATE, gate=gate)
    return planner.make(document, plan_helpers.config_json(config), plan_helpers.headers(config))


def notes(gate: dict[str, object], variants: dict[str, list[dict[str, object]]] = VARIANTS) -> tuple[str, ...]:
    """What a plan notes about gates."""
    return tuple(note for note in planned(gate, variants).notes if note.startswith("gate."))


END = "its speed cannot be measured on this machine, so that this gate cannot pass here"


def test_variants_that_vllm_does_not_load_here_are_named_with_the_reason() -> None:
    made = planned({"tokens_per_second": 1.2})
    assert notes({"tokens_per_second": 1.2}) == (f"gate.tokens_per_second: Int8: {NEEDS}; {END}",)
    assert all(f"  {note}\n" in table.render(made) + "\n" for note in made.notes)
    assert draft.as_json(made)["notes"] == made.notes
    assert not any(END in note for variant in made.variants for note in variant.notes), "cards are for other machines"


def test_a_gate_of_one_variant_concerns_that_one() -> None:
    (note,) = notes({"variants": {"Int8": {"tokens_per_second": 1.2}}})
    assert note.startswith("gate.tokens_per_second: Int8: ")
    assert notes({"variants": {"Int4": {"tokens_per_second": 1.2}}}) == ()
    assert notes({"perplexity_ratio": 2}) == ()


def test_codes_that_become_dense_weights_can_be_timed_and_a_gpu_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature, flags=None: False)
    (note,) = notes({"tokens_per_second": 1.2})
    assert note.startswith("gate.tokens_per_second: Int8: ")
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cuda")
    assert notes({"tokens_per_second": 1.2}) == ()


def test_without_a_vllm_that_runs_here_all_variants_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise ServeError("vllm", "vLLM is not installed in this environment", "install it")

    monkeypatch.setattr(vllm_settings, "find_device", none)
    (note,) = notes({"tokens_per_second": 1.2})
    said = "Int4, Int8, Int3, Thin: vLLM is not installed in this environment"
    assert note == f"gate.tokens_per_second: {said}; {END}"
    assert notes({"perplexity_ratio": 2}) == ()


def test_a_run_says_so_before_its_work(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *given: [])
    manifest = {
        "model": str(pico_folder),
        "calibrate": {"self": True, "sequence_length": 64},
        "variants": {"Int8": VARIANTS["Int8"]},
        "evaluate": EVALUATE | {"speed": {"prompt_tokens": 8, "output_tokens": 4}},
        "gate": {"tokens_per_second": 1.2},
    }
    assert api.run(manifest, out=tmp_path) == []
    assert f"note: gate.tokens_per_second: Int8: {NEEDS}" in capsys.readouterr().err
