"""Options of vLLM's command line as the keyword arguments that its engine takes.

    python -m serve.vllm_arguments '[["--max-model-len", "1k"]]'

prints a JSON object for each list. vLLM's own parser reads them, in a process of its own, because importing vLLM takes
long. What has the value that it has by default is left out.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from hubplugin.errors import ServeError
from serve.transformers_imports import without_sklearn

MARK = "keyword arguments: "  # what vLLM prints as it is imported stands in other lines


def keywords(engines: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Of AsyncEngineArgs and FrontendArgs, for each engine's options. Raises ServeError where vLLM refuses one."""
    words = json.dumps([list(options) for options in engines])
    command = [sys.executable, "-m", "serve.vllm_arguments", words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in ended.stdout.splitlines():
        if line.startswith(MARK):
            found: list[dict[str, Any]] = json.loads(line.removeprefix(MARK))
            return found
    why = (ended.stderr.strip() or "without a word").splitlines()[-1]
    raise ServeError("options of vLLM", f"are refused: {why}", "`vllm serve --help=all` lists them")


def parse(engines: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """As `keywords`, in this process, which vLLM's parser ends where it refuses an option."""
    with without_sklearn():
        cli: Any = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    utils: Any = importlib.import_module("vllm.utils.argparse_utils")
    parser = cli.make_arg_parser(utils.FlexibleArgumentParser(prog="vLLM"))
    usual = vars(parser.parse_args([]))
    given = (vars(parser.parse_args([*options])) for options in engines)
    return [{name: value for name, value in one.items() if value != usual[name]} for one in given]


if __name__ == "__main__":
    sys.stdout.write(f"{MARK}{json.dumps(parse(json.loads(sys.argv[1])), default=str)}\n")
