"""What a variant has no copy of, of its base's files, and why: every file is copied, made anew, or named here.

Knows names; opens no file but the index of the weights.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import PICKLES, PULLED, WEIGHTS, allowed
from hubplugin.report import LeftBehind

MADE_ANEW = {"README.md": "the variant has a card of its own"}
# the first pattern that matches decides; patterns of folders end with a slash
REASONS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".*",), "belongs to the repo, not to the model"),
    ((model_folder.SIGNATURE,), "signs the base's files, not the variant's"),
    (("onnx/", "openvino/", "coreml/", "tflite/", "flax/", "tf/", "rust/"), "weights of another framework"),
    (("original/", "metal/", "gguf/", "mlx/"), "weights in another format"),
    (("runs/", "logs/", "checkpoint-*/", "global_step*/"), "what a training left"),
    (("*/",), "no loader of a text model reads this folder"),
    (PICKLES, "weights as pickles, which can run code"),
    (("adapter_*",), "an adapter; its base is what is compressed"),
    (("*.safetensors", "*.safetensors.index.json", "params.json"), "weights in another format"),
    (("*.gguf", "*.ggml", "*.npz", "*.nemo", "*.mlmodel", "*.bin.index.json"), "weights in another format"),
    (("*.onnx*", "*.tflite", "*.ot", "*.pb", "*.params"), "weights of another framework"),
    (("*.py", "*.so", "*.sh", "*.ipynb"), "code, which is never run"),
    (
        ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        "images and sound are not handled",
    ),
    (("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"), "of sentence-transformers"),
    (
        ("trainer_state.json", "*_results.json", "training_args*", "optimizer*", "scheduler*", "*.log"),
        "what a training left",
    ),
    (("quantize_config.json", "quantization_config.json", "hf_quant_config.json"), "a variant has a scheme of its own"),
    (("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4", "*.pdf"), "a picture or paper about the base"),
    (("*.md", "*.txt", "*.html", "*.cff", "*.bib"), "text about the base"),
)
UNKNOWN = "no loader of a text model reads it"


def left_behind(base: Path, not_pulled: Iterable[str] = ()) -> tuple[LeftBehind, ...]:
    """The files and folders of a base that are not copied, with reasons, in order of their names.

    `base` is its folder on this disk; `not_pulled` are the files of its repo that never came here. A folder is named as
    a whole.
    """
    found = _on_disk(base)
    for path in not_pulled:
        folder, slash, _ = path.partition("/")
        name = path if folder == model_folder.NAMED_TEMPLATES else folder + slash
        found[name] = UNKNOWN if name == path and slash else _reason(name)
    return tuple(LeftBehind(file=name, reason=reason) for name, reason in sorted(found.items()))


def _on_disk(base: Path) -> dict[str, str]:
    read = model_folder.shards(base)
    found: dict[str, str] = {}
    for entry in sorted(base.iterdir()):
        name = entry.name
        if name == model_folder.NAMED_TEMPLATES and entry.is_dir():
            inner = (f"{name}/{file.name}" for file in sorted(entry.iterdir()))
            found |= {path: UNKNOWN for path in inner if not allowed(path, PULLED)}
        elif entry.is_dir():
            found[f"{name}/"] = _reason(f"{name}/")
        elif not entry.exists():
            found[name] = "a link that leads nowhere"
        elif name in MADE_ANEW:
            found[name] = MADE_ANEW[name]
        elif allowed(name, WEIGHTS) and name.endswith(".safetensors") and name not in read:
            found[name] = "the model's weights are in other files"
        elif not allowed(name, PULLED):
            found[name] = _reason(name)
    return found


def _reason(name: str) -> str:
    """Why a file is not copied; the name of a folder ends with a slash."""
    folder = name.endswith("/")
    for patterns, reason in REASONS:
        if any(
            fnmatchcase(name, pattern) for pattern in patterns if pattern.endswith("/") == folder or pattern == ".*"
        ):
            return reason
    return UNKNOWN
