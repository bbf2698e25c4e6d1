"""Memory and time planned from shapes: what grows with what, and that the plan holds for a process that does it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pico
import pytest
from plan_helpers import config_json

from hubplugin.manifest.methods import METHODS, Cost
from hubplugin.manifest.schema import Manifest
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.families import match
from hubplugin.plan.costs import estimates, workload
from hubplugin.plan.costs.estimates import Memory, Work

BENCH = Path(__file__).parents[1] / "bench"
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
GPTQ, PRUNE = {"method": "gptq"}, {"method": "prune", "ffn": 0.25}
WORK = Work(samples=64, tokens=512, quantizes=Cost(), prunes=None, corrected=64 * 512, number=2, device_number=2)


def memory(work: Work = WORK, model_type: str = "llama", resident: int = 0, **changes: object) -> Memory:
    config = config_json(pico.config(model_type, **changes))
    row = match(config, "")
    dims = architecture.dimensions(config, row, "")
    return estimates.memory(row, dims, architecture.linear_shapes(row, dims), work, resident)


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_activations_in_files_leave_less_in_memory_than_they_took_there(model_type):
    found = memory(model_type=model_type)
    assert estimates.RUNTIME_BYTES < found.spilled < found.peak
    assert found.disk >= 64 * 512 * 3 * 64 * 2 * 2  # into a block, out of attention, into the last linear; both lanes


def test_more_tokens_take_more_memory_and_disk_but_not_where_activations_spill():
    few, many = memory(), memory(replace(WORK, samples=6400, corrected=6400 * 512))
    assert many.disk == 100 * few.disk
    assert many.peak - few.peak >= many.disk - few.disk
    assert many.spilled == few.spilled


def test_the_base_takes_memory_for_the_tokens_that_pass_through_it_alone():
    none, some, every = (memory(replace(WORK, corrected=512 * count)) for count in (0, 16, 64))
    assert every.disk == 2 * none.disk and some.disk == none.disk * 5 // 4
    assert none.peak < some.peak < every.peak


def test_memory_does_not_grow_with_the_number_of_blocks():
    assert memory(num_hidden_layers=2) == memory(num_hidden_layers=200)


def test_wider_blocks_wider_numbers_correction_and_pruning_take_more():
    plain = memory(replace(WORK, corrected=0))
    assert memory().peak > plain.peak
    assert memory(replace(WORK, corrected=0, number=4)).peak > plain.peak
    assert (
        memory(replace(WORK, corrected=0, prunes=METHODS["prune"].cost), intermediate_size=4096).peak
        > memory(replace(WORK, corrected=0), intermediate_size=4096).peak
    )
    assert memory(intermediate_size=4096).spilled > memory().spilled


def test_the_peak_is_the_larger_of_sampling_from_the_whole_model_and_compressing():
    assert memory(resident=10**12).peak > 10**12
    assert memory(resident=10**12).disk == memory().disk


def test_the_output_head_counts_where_it_is_quantized():
    large = {"vocab_size": 100_000, "tie_word_embeddings": False}
    assert memory(replace(WORK, head=True), **large).peak > memory(**large).peak


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """Three layers of 75M weights' width, and token ids: paths of both."""
    models = [sys.executable, str(BENCH / "models.py"), "75m-3-layers", str(tmp_path_factory.mktemp("m"))]
    done = subprocess.run([*models, "--sequences", "16"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("spill", [False, True])
def test_memory_is_measured_within_15_percent_of_what_was_planned(tmp_path, spill, shape):
    base, ids = shape
    report = tmp_path / "report.json"
    arguments = ["--base", base, "--tokens", ids, "--out", str(tmp_path / "out"), "--report", str(report)]
    case = json.dumps({"spill": spill})
    command = [sys.executable, str(BENCH / "memory_child.py"), *arguments, "--case", case]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    found = json.loads(report.read_text())
    assert found["spilled"] == spill
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.parametrize(
    ("steps", "tokens"),
    [
        ([GPTQ], 2**15),
        ([{**GPTQ, "qep_tokens": 2**20}], 10**5),
        ([{**GPTQ, "qep": False}], 0),
        ([PRUNE], 10**5),
        ([{**PRUNE, "refit": False}], 0),
        ([{**PRUNE, "refit": False}, GPTQ], 10**5),
        ([PRUNE, {**GPTQ, "qep": False}], 10**5),
    ],
)
def test_as_many_tokens_pass_through_the_base_as_steps_ask_for(steps, tokens):
    entries = {"model": "a/b", "calibrate": {"self": True}, "variants": {"V": steps}}
    assert workload.corrected_tokens(Manifest.model_validate(entries).variants["V"], 10**5) == tokens
