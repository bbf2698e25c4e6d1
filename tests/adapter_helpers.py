"""LoRA adapters as PEFT saves them."""

import json
from pathlib import Path
from typing import Any

import torch


def write(folder: Path, base: Path, rank: int = 4, *, name: str | None = None, **config: Any) -> Path:
    """An adapter of a model in a folder, whose factors change what it says. `name`: of the base, as the adapter says;
    the rest replaces entries of its adapter_config.json."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "down_proj"]))
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:  # zeros, as PEFT begins
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    own = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(own | {"base_model_name_or_path": name or str(base)} | config), encoding="utf-8")
    return folder


def merged(folder: Path, base: Path, out: Path) -> Path:
    """The model with the adapter's product added to its weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(folder)).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out
