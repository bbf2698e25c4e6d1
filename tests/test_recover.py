"""Recovery: the loss by hand, training that held-out sequences judge, and runs that were killed on the way."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
import torch
from interruption_helpers import STOPS, check_killed, check_stopped, contents, stop_after, stopped
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint import resume
from hubplugin.errors import CompressError
from hubplugin.manifest.steps.training.recover import Recover
from hubplugin.model.block_runner import Model
from hubplugin.recovery import (
    block_training,
    distillation,
    output_head,
    recover,
    splitting,
    trainable,
    training_setup,
)
from hubplugin.recovery.optimizers import Pace
from hubplugin.report import Recovery

KEPT = 96  # of pico's 128 FFN channels


def step(**settings: Any) -> Recover:
    return Recover(**{"method": "recover", "blocks": 1, "distill": 4, **settings})


def edited(base: Path, out: Path, change: Any, **config: Any) -> Path:
    """A copy of a folder with other weights and config.json entries."""
    shutil.copytree(base, out)
    save_file(change(load_file(base / "model.safetensors")), out / "model.safetensors", metadata={"format": "pt"})
    entries = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**entries, **config}))
    return out


def narrower(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first channels of every FFN, and nothing refitted."""
    found = {}
    for name, weight in weights.items():
        rows = KEPT if name.endswith(("gate_proj.weight", "up_proj.weight")) else None
        columns = KEPT if name.endswith("down_proj.weight") else None
        found[name] = (weight[:rows] if weight.dim() == 1 else weight[:rows, :columns]).contiguous()
    return found


def damaged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same shapes, with channels of every FFN unheard."""
    return {
        name: torch.where(torch.arange(weight.shape[-1]) < 128 - KEPT, 0, weight) if "down_proj" in name else weight
        for name, weight in weights.items()
    }


@pytest.fixture(scope="module")
def pruned(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edited(pico_folder, tmp_path_factory.mktemp("pruned") / "m", narrower, intermediate_size=KEPT)


def run(student: Path, base: Path, out: Path, settings: Recover | None = None, **others: Any) -> Recovery:
    return recover.run(student, base, out, pico.tokens(33, 48), settings or step(), **others)


def measured(student: Path, base: Path) -> float:
    """Mean held-out KL by transformers' own loader and torch's own divergence."""
    with torch.no_grad():
        held = splitting.split(pico.tokens(33, 48))[1].long()
        expected, found = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(held).logits.double().log_softmax(-1)
            for folder in (base, student)
        )
    return float((expected.exp() * (expected - found)).sum(-1).mean())


# -- the loss


def test_the_loss_by_hand_on_five_tokens() -> None:
    base = torch.tensor([[0.4, 0.06, 0.3, 0.04, 0.2]])
    student = torch.tensor([[0.5, 0.1, 0.1, 0.1, 0.2]])
    logits = student.log() + 3.0  # not log-probabilities
    listed = 0.4 * math.log(0.4 / 0.5) + 0.3 * math.log(0.3 / 0.1)
    loss, gradient = output_head.forward_kl(2)(logits, base.log())
    assert float(loss) == pytest.approx(listed + 0.3 * math.log(0.3 / 0.4), abs=1e-6)
    by_hand = torch.tensor([[0.1, 0.1 * (1 - 0.3 / 0.4), -0.2, 0.1 * (1 - 0.3 / 0.4), 0.2 * (1 - 0.3 / 0.4)]])
    torch.testing.assert_close(gradient, by_hand)
    loss, gradient = output_head.forward_kl(None)(logits, base.log())
    assert float(loss) == pytest.approx(listed + 0.06 * math.log(0.6) + 0.04 * math.log(0.4), abs=1e-6)
    torch.testing.assert_close(gradient, student - base)


def naive(logits: Tensor, base: Tensor, count: int) -> Tensor:
    """The same divergence for autograd, without thought for speed or memory."""
    own, (logs, ids) = logits.log_softmax(-1), base.log_softmax(-1).topk(count)
    listed = own.gather(-1, ids)
    total = (logs.exp() * (logs - listed)).sum(-1)
    if count == logits.shape[-1]:
        return total
    rest, expected = (torch.log1p(-each.exp().sum(-1)) for each in (listed, logs))
    return total + expected.exp() * (expected - rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # compiled, and plain torch
@pytest.mark.parametrize("count", [1, 3, 10, 11, 64, None])
def test_the_gradient_is_autograds_and_the_whole_vocabulary_is_the_full_divergence(
    count: int | None, dtype: torch.dtype
) -> None:
    base, logits = torch.randn(14, 11, dtype=dtype) * 3, torch.randn(14, 11, dtype=dtype) * 2
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours = output_head.loss_of(one, base, output_head.forward_kl(count))
    theirs = naive(other, base, min(count or 11, 11)).sum()
    torch.testing.assert_close(ours, theirs)
    (0.5 * ours).backward()
    (0.5 * theirs).backward()
    torch.testing.assert_close(one.grad, other.grad)
    if count in (None, 11, 64):
        full = torch.nn.functional.kl_div(
            logits.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="sum"
        )
        torch.testing.assert_close(ours.detach(), full)


@pytest.mark.parametrize("top_k", [2, None])
def test_the_loss_stays_finite_where_both_are_certain(top_k: int | None) -> None:
    base = torch.zeros(1, 9)
    base[0, 3] = 200.0
    logits = base.clone().requires_grad_()
    output_head.loss_of(logits, base, output_head.forward_kl(top_k)).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("top_k", [8, None])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", [1, 5, 10**6])
def test_a_head_in_pieces_gives_the_loss_and_gradients_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, tied: bool, positions: int, top_k: int | None
) -> None:
    base, ids = pico.model("llama", dtype=torch.float32).requires_grad_(False), pico.tokens(3, 16).long()
    vocabulary = len(base.lm_head.weight)
    monkeypatch.setattr(output_head, "LOGITS", positions * vocabulary)
    monkeypatch.setattr(output_head, "LOGITS_BYTES", 7 * vocabulary * 4)
    one, other = (pico.model("llama", dtype=torch.float32, seed=3, tie_word_embeddings=tied) for _ in range(2))
    head, base_head = output_head.plain_head(one), output_head.plain_head(base)
    assert head is not None and base_head is not None and head is one.lm_head
    read = output_head.hidden_states(base, base_head, ids)
    ours = output_head.divergence_at_head(one, head, ids, (read, base_head.weight), output_head.forward_kl(top_k))
    pair = (each(ids).logits.flatten(0, 1) for each in (other, base))
    theirs = naive(*pair, top_k or vocabulary).sum()
    torch.testing.assert_close(ours, theirs)
    (0.5 * ours).backward()
    (0.5 * theirs).backward()
    for (name, weight), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, msg=lambda said, name=name: f"{name}: {said}")
    torch.testing.assert_close(one(ids).logits, other(ids).logits, msg="the head is as it was")


def test_logits_that_are_more_than_a_heads_products_are_left_whole() -> None:
    assert output_head.plain_head(pico.model("gemma2")) is None, "they are capped"
    held = pico.model("llama")
    held.lm_head.weight = torch.nn.Parameter(held.lm_head.weight.to("meta"))
    assert output_head.plain_head(held) is None, "a quantized head has no weight"


# -- what comes out


def test_recovery_lowers_the_held_out_divergence_and_reports_what_the_folder_has(
    pruned: Path, pico_folder: Path, tmp_path: Path
) -> None:
    done = run(pruned, pico_folder, tmp_path / "out")
    assert done.kl_blocks is not None and done.kl_after < done.kl_blocks < done.kl_before
    assert done.kl_before == pytest.approx(measured(pruned, pico_folder), rel=1e-4)
    assert done.kl_after == pytest.approx(measured(tmp_path / "out", pico_folder), rel=1e-4)
    assert all(block.loss_after < block.loss_before for block in done.blocks) and len(done.blocks) == 2
    assert pico.headers(tmp_path / "out") == pico.headers(pruned)
    for name in ("config.json", "tokenizer.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (pruned / name).read_bytes()
    assert (done.tokens, done.held_out_tokens, done.steps) == (29 * 48, 4 * 48, 4 * 29 // 42)


@pytest.mark.parametrize("settings", [{"learning_rate": 0.1}, {"learning_rate": 0.1, "lora": 4}])
def test_a_recovery_that_only_harms_returns_the_students_files(
    pruned: Path, pico_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    done = run(pruned, pico_folder, tmp_path / "out", step(blocks=0, distill=9, **settings))
    assert done.kl_after == done.kl_before and done.steps > 0
    assert contents(tmp_path / "out") == {name: data for name, data in contents(pruned).items() if name != "README.md"}


def test_blocks_stored_in_float32_that_training_only_harms_keep_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pico.write(tmp_path / "base", dtype=torch.float32)
    student = edited(base, tmp_path / "student", damaged)
    monkeypatch.setattr(recover, "BLOCK_RATE", 10.0)
    monkeypatch.setattr(block_training, "SLOWER", 1)
    done = run(student, base, tmp_path / "out", step(distill=0))
    assert all(block.loss_after == block.loss_before for block in done.blocks) and done.kl_after == done.kl_before
    before, after = (load_file(folder / "model.safetensors") for folder in (student, tmp_path / "out"))
    assert all(weight.equal(after[name]) for name, weight in before.items())


def test_no_epochs_return_the_students_files(pruned: Path, pico_folder: Path, tmp_path: Path) -> None:
    nothing = Recover.model_construct(method="recover", blocks=0, distill=0)
    done = run(pruned, pico_folder, tmp_path / "out", nothing)
    assert done.kl_after == done.kl_before
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "phi3", "gemma2"])
def test_every_family_is_trained(kind: str, tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", kind)
    student = edited(base, tmp_path / "student", damaged)
    done = run(student, base, tmp_path / "out")
    assert done.kl_after < done.kl_before
    assert pico.headers(tmp_path / "out") == pico.headers(student)
    before, after = (load_file(folder / "model.safetensors") for folder in (student, tmp_path / "out"))
    assert not [name for name in before if before[name].equal(after[name]) and before[name].dim() == 2]


def test_tied_embeddings_stay_tied_and_are_trained(pruned: Path, pico_folder: Path, tmp_path: Path) -> None:
    run(pruned, pico_folder, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "out"))
    assert "lm_head.weight" not in after
    assert not before["model.embed_tokens.weight"].equal(after["model.embed_tokens.weight"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_blocks_of_a_shorter_student_match_the_blocks_that_are_named(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", num_hidden_layers=3)

    def without_the_middle(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: weight for name, weight in weights.items() if ".layers.1." not in name}
        return {name.replace(".layers.2.", ".layers.1."): weight for name, weight in kept.items()}

    layers = {"num_hidden_layers": 2, "layer_types": None}
    student = edited(base, tmp_path / "student", without_the_middle, **layers)
    same, shifted = (
        run(student, base, tmp_path / f"out{ends}", step(distill=0), teacher_blocks=ends).blocks
        for ends in ((0, 2), (1, 2))
    )
    assert same[0].loss_before < 1e-9 < 1e-3 < shifted[0].loss_before
    assert same[1].loss_after < same[1].loss_before
    assert shifted[0].loss_after < shifted[0].loss_before


def test_a_block_that_gains_nothing_is_tried_again_with_smaller_steps_and_so_are_those_behind_it(
    pruned: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, rates = block_training._train, []

    def watched(*given: Any) -> Any:
        rates.append(given[-1])
        return train(*given)

    monkeypatch.setattr(block_training, "_train", watched)
    monkeypatch.setattr(recover, "BLOCK_RATE", 0.64)
    monkeypatch.setattr(block_training, "SLOWER", 64)
    done = run(pruned, pico_folder, tmp_path / "out", step(distill=0))
    assert rates == [0.64, 0.01, 0.01] or rates == [0.64, 0.01, 0.01, 0.01 / 64]
    assert done.blocks[0].loss_after < done.blocks[0].loss_before


# -- LoRA


def test_merged_adapters_answer_as_unmerged_ones_did(
    pruned: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, seen, ask = pico.tokens(2, 32, seed=5).long(), [], distillation.held_out

    def watched(student: Any, *others: Any) -> float:
        with torch.no_grad():
            seen.append(student(input_ids=ids).logits)
        return ask(student, *others)

    monkeypatch.setattr(distillation, "held_out", watched)
    tokens = splitting.split(pico.tokens(33, 48))
    work = training_setup.TrainingSetup(pruned, pico_folder, tokens, recover.Reader(pruned).headers, "cpu")
    student, base = work.model(pruned), work.model(pico_folder)
    settings = step(lora=4, distill=9)
    adapters = trainable.Adapters(student.load_all(), 4, student.family)
    lesson = distillation.Predictions(base.load_all(), tokens, settings.top_k)
    training = distillation.Distillation(adapters, lesson, settings, math.inf, Pace(recover.LORA_RATE))
    done = training.run(resume.TrainingCheckpoints(tmp_path, resume.Fingerprint()))
    assert done.best_step == done.steps, "the last answers seen are those of what was kept"
    merged: Model = work.model(pruned, done.weights)
    with torch.no_grad():
        torch.testing.assert_close(merged.load_all()(input_ids=ids).logits, seen[-1], atol=2e-5, rtol=1e-4)
    assert not seen[-1].allclose(seen[0], atol=1e-3), "nothing was learnt"
    before = load_file(pruned / "model.safetensors")
    changed = {name for name, weight in done.weights.items() if not weight.equal(before[name].float())}
    assert changed == {name for name in before if "_proj" in name}


# -- interruptions


STEPS = {"all weights": step(distill=12), "adapters": step(distill=12, lora=4)}


@pytest.mark.parametrize("kind", list(STEPS))
@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_recovery_goes_on_to_the_same_bytes(
    pruned: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any, kind: str
) -> None:
    check_stopped(lambda out: run(pruned, pico_folder, out, STEPS[kind]), tmp_path, stop, monkeypatch)


def test_what_was_trained_is_not_trained_again(
    pruned: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with stopped(5, distillation.Distillation, "_learn", monkeypatch):
        run(pruned, pico_folder, out, STEPS["all weights"])
    made_from = json.loads((out / resume.TRAINING / resume.FINGERPRINT_FILE).read_text())
    assert resume.TrainingCheckpoints(out, resume.Fingerprint(made_from)).notes("distillation")["step"] == 5
    with monkeypatch.context() as patched:
        stop_after(0, block_training, "_train", patched)
        stop_after(3, distillation.Distillation, "_learn", patched)
        done = run(pruned, pico_folder, out, STEPS["all weights"])
        assert run(pruned, pico_folder, out, STEPS["all weights"]) == done, "a finished folder is kept"
    assert [path.name for path in (out / resume.TRAINING).glob("*.safetensors")] == ["done.safetensors"]


@pytest.mark.parametrize("named", ["base", "student", "tokens", "steps"])
def test_another_base_student_or_step_does_not_resume(
    pruned: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    given: dict[str, Any] = {"student": pruned, "base": pico_folder, "tokens": pico.tokens(33, 48), "step": step()}
    other = pico.write(tmp_path / "other", seed=3)
    changed = {
        "base": other,
        "student": edited(pruned, tmp_path / "s", damaged),
        "tokens": pico.tokens(33, 48, seed=9),
        "steps": step(top_k=5),
    }
    with stopped(1, block_training, "_train", monkeypatch):
        recover.run(out=tmp_path / "out", **given)
    kept = contents(tmp_path / "out" / resume.TRAINING)
    given["step" if named == "steps" else named] = changed[named]
    with pytest.raises(CompressError) as refusal:
        recover.run(out=tmp_path / "out", **given)
    assert f"another {named}," in refusal.value.what and "remove that folder" in refusal.value.fix
    assert contents(tmp_path / "out" / resume.TRAINING) == kept, "nothing is lost by asking"


def run_all_weights(student: Path, base: Path, out: Path) -> Recovery:
    return run(student, base, out, STEPS["all weights"])


@pytest.mark.slow
def test_kills_at_any_moment_end_in_the_same_bytes(pruned: Path, pico_folder: Path, tmp_path: Path) -> None:
    check_killed(run_all_weights, (pruned, pico_folder), tmp_path)


# -- tokens and time


def test_held_out_sequences_are_one_in_eight_and_never_trained_on() -> None:
    tokens = torch.arange(40 * 48).reshape(40, 48)
    train, held = splitting.split(tokens)
    assert held[:, 0].tolist() == [48 * place for place in (7, 15, 23, 31, 39)]
    assert sorted([*train[:, 0].tolist(), *held[:, 0].tolist()]) == tokens[:, 0].tolist()
    assert len(splitting.split(torch.zeros(1000, 512))[1]) == splitting.HELD_OUT_TOKENS // 512
    assert [len(part) for part in splitting.split(tokens[:3])] == [2, 1]
    with pytest.raises(CompressError, match="leaves none to hold out"):
        splitting.split(tokens[:1])


def test_the_tokens_that_are_reported_are_those_that_were_seen(
    pruned: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "STEP_TOKENS", 2 * 48)
    monkeypatch.setattr(recover, "BLOCK_TOKENS", 5 * 48)
    assert run(pruned, pico_folder, tmp_path / "blocks", step(distill=0)).tokens == 5 * 48
    part = run(pruned, pico_folder, tmp_path / "part", step(blocks=0, distill=0.5))
    assert (part.steps, part.tokens) == (7, 14 * 48)
    twice = run(pruned, pico_folder, tmp_path / "twice", step(blocks=0, distill=2))
    assert (twice.steps, twice.tokens) == (29, 29 * 48)


@pytest.mark.parametrize("total", [1, 7, 8, 14, 17, 375])
def test_held_out_sequences_are_asked_eight_times_at_most(total: int) -> None:
    lesson, student = (
        SimpleNamespace(train=torch.zeros(total, 1)),
        SimpleNamespace(trained={"one": torch.zeros(1)}, module=pico.model("llama"), optimizers=lambda *_: None),
    )
    training = distillation.Distillation(student, lesson, step(distill=1), 1.0, Pace(1e-4, step_tokens=1))  # type: ignore[arg-type]
    assert training._total == total and math.ceil(total / training._every) <= distillation.EVALUATIONS


def test_a_time_limit_ends_it(pruned: Path, pico_folder: Path, tmp_path: Path) -> None:
    done = run(pruned, pico_folder, tmp_path / "out", step(minutes=1e-5, distill=100))
    assert done.stopped == "its time was over" and done.steps < 100 * 29 // 42
    assert done.blocks[1].loss_after == done.blocks[1].loss_before, "the second block came too late"
    assert done.kl_after <= done.kl_before
