"""The speed of pico models in the real vLLM."""

from pathlib import Path

import pico
import pytest

from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.speed import rounds
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.model.architectures import architecture, configs, families
from hubplugin.plan import vllm_support
from hubplugin.plan.costs import operations
from serve import vllm_settings

pytestmark = pytest.mark.serve


def subject(name: str, folder: Path) -> rounds.Subject:
    config = configs.read_config(folder, str(folder))
    family = families.match(config, str(folder))
    dims = architecture.dimensions(config, family, str(folder))
    work = operations.of(family, dims, config)
    return rounds.Subject(name, folder, vllm_support.verdicts("llama", dims, ()), work, dims.vocab)


def test_vllm_serves_base_and_variant_in_turn_and_everything_is_measured(tmp_path: Path) -> None:
    base = subject("base", pico.write(tmp_path / "base"))
    variant = subject("thin", pico.write(tmp_path / "thin", intermediate_size=96))
    settings = Settings(concurrency=(1, 3), prompt_tokens=16, output_tokens=8, rounds=1)
    speed = rounds.measure(base, variant, settings, engine_choice.take_turn)
    assert (
        not speed.not_measured
        and speed.engine.startswith("vLLM 0.")
        and speed.engine.endswith(", float32" if vllm_settings.cpu_dtype({}) else ", bfloat16")
    )
    assert speed.base and speed.variant and speed.ceiling
    for served in (speed.base, speed.variant):
        assert 0 <= served.others_share.median <= 1
        assert served.ready_seconds.median > 0 and served.peak_bytes.median > 100e6
        assert [(load.concurrency, load.requests) for load in served.loads] == [(1, 4), (3, 4)]
        for load in served.loads:
            assert load.first_token_seconds.median > 0 and load.per_token_seconds.median > 0
            assert load.mfu and 0 < load.mfu.median < 1
            # all tokens over the time on the wall: no request is done before its own tokens are
            own = load.first_token_seconds.median + 7 * load.per_token_seconds.median
            assert load.tokens_per_second.median < 1.5 * 8 * load.concurrency / own
    assert speed.variant.loads[0].speedup and not speed.base.loads[0].speedup
    assert speed.variant.flops_per_request < speed.base.flops_per_request
