"""What vLLM's 8-bit rounding of activations costs and gives on a CPU with AMX: agreement with float32, and speed.

    python bench/activations.py out/demo/variants/GPTQ-Int4-g64

For each setting of VLLM_CPU_INT4_W4A8: by how much the log-probabilities of 32 generated tokens differ from our float32
forward on average, what half precision alone does, and the median decoding speed of eight answers.
"""

import argparse
import os
import statistics
from pathlib import Path

import torch

from hubplugin.evaluation import generation
from hubplugin.evaluation.generation import logprobs
from hubplugin.model.architectures import configs, families
from serve import client, engine, smoke

PROMPTS = [[72, 532, 411, 45, 67, 12, 90], [110, 101, 120, 7, 8, 9], [200, 30, 40, 12], [5, 6, 7, 100, 101]]
QUESTION = "What does os.path.join do?"
ANSWERS, TOKENS = 8, 200


def agreement(path: Path) -> tuple[float, float]:
    """(vLLM against float32, half precision against float32), nats."""
    row = families.match(configs.read_config(path, str(path)), str(path))
    made = smoke.generate(path, PROMPTS, 8)
    theirs = torch.tensor([value for values in made.logprobs for value in values])
    exact = logprobs(path, row, PROMPTS, made.token_ids)
    half = logprobs(path, row, PROMPTS, made.token_ids, generation.served_dtype(path))
    return float((theirs - exact).abs().mean()), float((half - exact).abs().mean())


def speed(path: Path) -> float:
    """Tokens per second, one answer at a time, after one that does not count."""
    rates = []
    with engine.start(path, name="model") as running:
        for number in range(ANSWERS + 1):
            messages = [{"role": "user", "content": f"{QUESTION} {number}"}]
            *_, last = client.stream(running.url, "model", messages, temperature=0.8, max_tokens=TOKENS)
            rates.append(last.tokens_per_second or 0.0)
    return statistics.median(rates[1:])


def main() -> None:
    """Print one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    path = parser.parse_args().folder
    for setting in ("0", "1"):
        os.environ["VLLM_CPU_INT4_W4A8"] = setting
        engine_noise, half_noise = agreement(path)
        print(
            f"VLLM_CPU_INT4_W4A8={setting}: differs from float32 by {engine_noise:.4f} nats "
            f"(half precision alone {half_noise:.4f}), {speed(path):.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
