"""A stand-in for gptqmodel in the worker's process: the few calls the worker makes, with plain rounding behind them.

Writes what it was asked into the file ASKED. TEMPER in the environment makes it fail, or hang.
"""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BACKEND = SimpleNamespace(GPTQ_TORCH="torch")
HANGS, FAILS = "hangs", "fails"


class GPTQConfig:
    """Keeps what it is given."""

    def __init__(self, **given: Any) -> None:
        self.given = given


class _Linear:
    def __init__(self, weight: torch.Tensor, scales: torch.Tensor) -> None:
        self._weight, self.scales = weight, scales.T  # [groups, outputs]

    def dequantize_weight(self) -> torch.Tensor:
        """Steps times scales [inputs, outputs], in the dtype of the scales."""
        groups = self.scales.shape[0]
        return self._weight.T * self.scales.repeat_interleave(self._weight.shape[1] // groups, dim=0)


class GPTQModel:
    """Both what `load` returns for a base and what it returns for its own checkpoint."""

    def __init__(self, folder: Path, settings: GPTQConfig | None) -> None:
        self._folder, self._settings, self.model = folder, settings, self
        self.layer_callback: Any = None

    @classmethod
    def load(cls, folder: str, settings: GPTQConfig | None = None, **_: Any) -> "GPTQModel":
        return cls(Path(folder), settings)

    def quantize(self, rows: list[dict[str, torch.Tensor]], batch_size: int) -> dict[str, list[dict[str, Any]]]:
        print("the library talks on standard output")
        Path("logs").mkdir()
        if os.environ.get("TEMPER") == HANGS:
            Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
            time.sleep(600)
        if os.environ.get("TEMPER") == FAILS:
            raise RuntimeError("it was not to be")
        assert self._settings is not None
        self._made = {}
        log = []
        for name, weight in load_file(self._folder / "model.safetensors").items():
            if "_proj.weight" not in name:
                continue
            _, _, layer, module = name.removesuffix(".weight").split(".", 3)
            size = weight.shape[1] if self._settings.given["group_size"] == -1 else self._settings.given["group_size"]
            half = 2 ** (self._settings.given["bits"] - 1)
            groups = weight.float().reshape(len(weight), -1, size)
            scales = (groups.abs().amax(-1) / (half - 1)).half()
            steps = (groups / scales.float()[..., None]).round().clamp(-half, half - 1)
            self._made |= {f"{name}.steps": steps.reshape(weight.shape), f"{name}.scales": scales}
            said = "rtn fallback" if (layer, module) == ("1", "mlp.down_proj") else "0.0000012883"
            log.append({"layer": int(layer), "module": module, "loss": said, "damp": "0.02000", "time": "0.125"})
        self._asked = {
            "settings": self._settings.given,
            "ids": [row["input_ids"].tolist() for row in rows],
            "mask": sum(int(row["attention_mask"].sum()) for row in rows),
        }
        for layer in sorted({row["layer"] for row in log}):
            for finalized in (False, True):
                self.layer_callback.layer_complete(layer_idx=layer, submodule_finalized=finalized)
        return {"gptq": log}

    def save(self, folder: str) -> None:
        Path(folder).mkdir()
        save_file(self._made, Path(folder) / "model.safetensors")
        if "ASKED" in os.environ:
            Path(os.environ["ASKED"]).write_text(json.dumps(self._asked))

    def get_submodule(self, name: str) -> _Linear:
        stored = load_file(self._folder / "model.safetensors")
        return _Linear(stored[f"{name}.weight.steps"], stored[f"{name}.weight.scales"])
