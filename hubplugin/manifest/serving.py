"""The settings of `serve:`: how `hubplugin serve` starts vLLM for this manifest's models. Knows no engine."""

import json
import re
from typing import Any

from pydantic import Field, field_validator

from hubplugin.manifest.base import Settings, Whole
from hubplugin.manifest.base import fault as _fault


class Serving(Settings):
    """How the base and the variants are served."""

    max_model_len: Whole | None = Field(
        default=None,
        ge=16,
        description="A number of tokens of prompt and answer together. Left out: its own, 4096 on a CPU.",
        examples=[2048],
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of vLLM, by their names without dashes in front: a flag is `true`, or `false` for its "
        "`no-` form; mappings are sent as JSON. What stands behind `--` on the command line wins.",
        examples=[{"max-num-seqs": 16, "kv-cache-dtype": "fp8"}],
    )

    @field_validator("vllm")
    @classmethod
    def _option_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", str(name)):
                raise _fault("is no name of an option", "write it as in max-num-seqs: 16", str(name))
            if given is None or (isinstance(given, list) and any(isinstance(each, list | dict) for each in given)):
                raise _fault("has no value that an option takes", "give true, a number, a text or a list of them", name)
        return value

    @property
    def options(self) -> tuple[str, ...]:
        """The options as they are typed."""
        words: list[str] = []
        for name, given in self.vllm.items():
            option = f"--{name.replace('_', '-')}"
            if isinstance(given, bool):
                words.append(option if given else f"--no-{option[2:]}")
            elif isinstance(given, list):
                words += [option, *map(str, given)]
            else:
                words.append(f"{option}={json.dumps(given) if isinstance(given, dict) else given}")
        return tuple(words)
