"""What is wrong with a value of the manifest, in words about manifests instead of about its schema.

Knows pydantic's kinds of errors and what belongs under each key; no model and no schema.
"""

from collections.abc import Callable, Iterable
from typing import Any

# what to write under a key, where a value alone does not say it
WANTED = {
    "model": "owner/name, owner/name@revision, or a local folder",
    "calibrate": "a source, such as {self: true} or {dataset: owner/name, split: train}",
    "dataset": "a dataset's name on the Hub, such as Salesforce/wikitext",
    "files": "a list of paths, such as [texts/a.txt, texts/b.jsonl]",
    "samples": "a number of sequences, from 1 to 65536",
    "tokens": "a number of tokens per sequence, from 16 to 131072",
    "seed": "a whole number, 0 or more",
    "variants": "names with lists of steps, such as Int4: [{method: gptq, bits: 4}]",
    "ffn": "the share of FFN channels to remove, above 0 and below 1, such as 0.25",
    "heads": "the share of query heads to remove, above 0 and below 1, such as 0.25",
    "kv_heads": "the share of KV groups to remove, above 0 and below 1, such as 0.25",
    "layers": "how many layers to remove, such as 2",
    "attention": "how many attention sub-blocks to remove, such as 2",
    "mlp": "how many FFN sub-blocks to remove, such as 2",
    "ratio": "the share of the blocks' weights to remove, above 0 and below 1, such as 0.3",
    "params": "how many parameters the model may keep, such as 100000000",
    "latency": "time per token as a share of the base's, above 0 and below 1, such as 0.8",
    "sparsity": "the share of weights to set to zero, above 0 and below 1, such as 0.5",
    "ignore": "a list of linears, such as [down_proj, layers.0.*]",
    "overrides": "linears and what they do differently, such as {down_proj: {bits: 8}}",
    "budget": "what the variant may weigh, such as {bits_per_weight: 4.5}",
    "options": "a list of grids, such as [{bits: 4}, {bits: 8}]",
    "damp": "a share of the mean diagonal, above 0 and at most 1, such as 0.01",
    "blocks": "a number of epochs, 0 to leave it out",
    "distill": "a number of epochs, 0 to leave it out",
    "learning_rate": "a number above 0, such as 0.0001",
    "top_k": "a number of tokens, 1 or more, such as 64",
    "lora": "the rank of adapters, such as 16; leave it out to train all weights",
    "minutes": "a number of minutes, above 0, such as 10",
    "data": "a source, such as {files: [texts/a.txt], samples: 1024, tokens: 512}",
    "evaluate": "{perplexity: {dataset: owner/name, split: test}}",
    "perplexity": "a source, such as {self: true, seed: 1} or {dataset: owner/name, split: test}",
    "gate": "thresholds, such as {perplexity_ratio: 1.1}",
    "perplexity_ratio": "variant / base, 1 or more, such as 1.1",
    "mean_kl": "nats per token, above 0, such as 0.05",
    "publish": '{repo: "owner/{model}-{variant}"}',
    "repo": '"owner/{model}-{variant}", in quotes',
    "collection": "a title of at most 59 characters",
}


def explain(problem: Any, methods: Iterable[str], near: Callable[[str, list[Any]], str]) -> tuple[str, str]:
    """Cause and remedy of one of pydantic's errors; `near` proposes what an unknown key below its parents may mean."""
    kind, value = problem["type"], problem["input"]
    keys = [part for part in problem["loc"] if part != "[key]"]
    key, got = str(keys[-1]) if keys else "", _shown(value)
    if kind == "fault":
        return problem["ctx"]["what"], problem["ctx"]["fix"]
    if kind == "extra_forbidden":
        return f"{key!r} is no key here", near(key, keys[:-1])
    if kind == "missing":
        return "is missing", f"add it: {WANTED[key]}" if key in WANTED else "add it; see README, The manifest"
    if kind == "literal_error":
        return f"{got} is not supported", f"use {problem['ctx']['expected']}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return (
            "a step names its method",
            f"use one of {', '.join(methods)}, such as {{method: gptq, bits: 4}}",
        )
    if kind == "bool_type":
        return f"{got} is neither yes nor no", "write true or false"
    if kind == "string_pattern_mismatch":
        return "is empty or holds a line break or a control character", "write it on one line"
    if problem["loc"][-1:] == ("[key]",) or (kind == "string_type" and _is_scalar(value)):
        return f"YAML reads {got} as {type(value).__name__}, not as text", f'put it in quotes: "{value}"'
    if keys[:1] == ["variants"] and len(keys) in (2, 3) and kind.endswith("_type"):
        return f"{got} is no list of steps", "write each step as `- {method: gptq, bits: 4}`"
    return f"{got} is not what it takes", f"write {WANTED.get(key, 'another; see README, The manifest')}"


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list))


def _shown(value: Any) -> str:
    """A value of the file, short, in words a YAML author uses."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool) or value is None:
        return "nothing" if value is None else str(value).lower()
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...") if isinstance(value, str) else text[:60]
