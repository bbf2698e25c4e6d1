"""Data types of the KV cache in the real vLLM, on the demo model and its own kind of text."""

import math
from pathlib import Path

import pytest
from serve_helpers import DEMO
from test_speed_serve import subject

from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.speed import kv_caches
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from serve import cpu_features, vllm_settings

pytestmark = pytest.mark.serve


def test_an_fp8_cache_takes_half_the_bytes_and_moves_what_the_model_says() -> None:
    if vllm_settings.find_device() == "cpu" and cpu_features.missing((cpu_features.AVX512,)):
        pytest.skip("vLLM's FP8 KV cache needs AVX-512 on a CPU")
    text = Path(__file__).parents[1].joinpath("docs", "serving.md").read_text("utf-8")
    ids = read_tokenizer(DEMO)(text)["input_ids"]
    sequences = [ids[at : at + 600] for at in (0, 600)]
    settings = Settings(concurrency=(1, 2), prompt_tokens=16, output_tokens=8, kv_cache=("fp8", "nvfp4"))
    own, fp8, refused = kv_caches.measure(subject("demo", DEMO), settings, sequences, engine_choice.serve_cache)
    assert not own.not_measured and not fp8.not_measured, (own, fp8)
    wide = own.stored_as == "float32"
    assert own.bytes_per_token == 2 * 6 * 3 * 64 * (4 if wide else 2)  # keys and values, layers, heads, width, bytes
    assert fp8.bytes_per_token == own.bytes_per_token / (4 if wide else 2)
    for one in (own, fp8):
        assert (one.sequences, one.predicted_tokens) == (2, 2 * 510)
        assert one.perplexity and 1 < one.perplexity < 6144 and one.tokens_per_second and one.tokens_per_second > 0
    assert (own.perplexity_ratio, own.top1_agreement, own.mean_kl_top20) == (1, 1, 0)
    # three bits of mantissa: seen on Intel Xeon with AVX-512 were 0.99 to 1.01, 0.93 and 0.0095 nats
    assert fp8.perplexity_ratio and fp8.perplexity_ratio != 1 and abs(math.log(fp8.perplexity_ratio)) < 0.05
    assert fp8.top1_agreement and 0.8 < fp8.top1_agreement < 1
    assert fp8.mean_kl_top20 and 0 < fp8.mean_kl_top20 < 0.1
    if vllm_settings.find_device() == "cpu":
        assert "answers with wrong tokens" in refused.not_measured and refused.bytes_per_token is None
