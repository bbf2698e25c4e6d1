"""kill -9 at any moment, run again: the run goes on after the last finished block and writes the same bytes."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from interruption_helpers import contents

from hubplugin.checkpoint import resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import export
from hubplugin.compress.blocks import blockwise
from hubplugin.errors import CompressError
from hubplugin.hub import snapshots
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner
from hubplugin.plan.variant_plan import VariantPlan

KILLS = 24
STEPS = ({"method": "prune", "ffn": 0.25}, {"method": "gptq", "bits": 4, "group_size": 32})


def planned(base: Path, *steps: dict[str, object]) -> VariantPlan:
    entries = {"model": str(base), "calibrate": {"self": True, "samples": 9, "tokens": 48}, "variants": {"V": steps}}
    document = Document(path=str(base / "m.yaml"), text="", sha256="", manifest=Manifest.model_validate(entries))
    peek = snapshots.peek(str(base), base)
    return planner.make(document, peek.config, peek.tensors).variants[0]


def make(base: Path, out: Path, pause: float = 0.0, inputs: dict[str, str] | None = None) -> int:
    """Write a variant's folder, waiting `pause` seconds here and there so that kills can fall anywhere; blocks made."""
    variant, row = planned(base, *STEPS), families.FAMILIES["llama"]
    out.mkdir(exist_ok=True)
    target = export.Folder(
        out, base, variant, row, resume.Fingerprint(inputs or {"base": "b", "calibration tokens": "t"})
    )
    view = DenseView(base)
    model, made = Model(view, view.config, row), 0
    for block in blockwise.blocks(model, blockwise.Calibration(pico.tokens(9, 48)), variant, torch.bfloat16, target):
        time.sleep(pause)
        target.add(block)
        time.sleep(pause)
        made += 1
    target.finish(keep_blocks=True)
    time.sleep(pause)
    return made


def make_when_ready(ready: Any, base: Path, out: Path) -> None:
    ready.set()
    make(base, out, 0.05)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("deep") / "m", "llama", num_hidden_layers=6)


def finished(out: Path) -> int:
    return len(list((out / resume.BLOCKS).glob("block-*.safetensors"))) if out.exists() else 0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(deep: Path, tmp_path: Path) -> None:
    assert make(deep, tmp_path / "undisturbed") == 6
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["hubplugin.compress.export"]
    )  # libraries are loaded once, for all that are killed
    chance, kills, blocks = random.Random(5), 0, []
    while kills < KILLS:
        out = tmp_path / "killed"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(4):  # kills in a row, then to the end
            ready = processes.Event()
            worker = processes.Process(target=make_when_ready, args=(ready, deep, out))
            worker.start()
            assert ready.wait(60)
            until = chance.randrange(7)  # finished blocks, however fast this machine is, and some time into the next
            while worker.is_alive() and finished(out) < until:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            worker.kill()
            worker.join()
            kills += worker.exitcode == -signal.SIGKILL
            blocks.append(finished(out))
        make(deep, out)
        assert contents(out) == contents(tmp_path / "undisturbed"), f"after kills at blocks {blocks}"
    assert len(set(blocks)) > 3, f"the kills fell at too few different blocks: {blocks}"


def test_finished_blocks_are_not_made_again(deep: Path, tmp_path: Path) -> None:
    make(deep, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for number in (4, 5):
        (tmp_path / "part" / resume.BLOCKS / f"block-{number:05d}.safetensors").unlink()
    (tmp_path / "part" / resume.BLOCKS / "block-00004.part").write_bytes(b"half of it")
    assert make(deep, tmp_path / "part") == 2
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert make(deep, tmp_path / "part") == 0


@pytest.mark.parametrize("key", ["base", "calibration tokens", "steps"])
def test_blocks_of_another_base_or_other_tokens_are_refused(deep: Path, tmp_path: Path, key: str) -> None:
    make(deep, tmp_path / "v")
    kept = contents(tmp_path / "v" / resume.BLOCKS)
    other = {"base": "b", "calibration tokens": "t", key: "another"}
    with pytest.raises(CompressError) as refusal:
        make(deep, tmp_path / "v", inputs=other)
    assert key in refusal.value.what and "6 finished blocks" in refusal.value.what
    assert contents(tmp_path / "v" / resume.BLOCKS) == kept, "nothing is lost by asking"


def test_a_fingerprint_without_blocks_gives_way(tmp_path: Path) -> None:
    resume.FinishedBlocks(tmp_path, resume.Fingerprint({"base": "old"}))
    resume.FinishedBlocks(tmp_path, resume.Fingerprint({"base": "new"}))
    assert json.loads((tmp_path / resume.BLOCKS / resume.FINGERPRINT_FILE).read_text()) == {"base": "new"}
