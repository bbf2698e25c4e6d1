"""The base, the sources of tokens and the names of repos, against one another: each contradiction a PlanError.

Knows what config.json says of context and kind, and the Hub's rules for names; no method, no shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from hubplugin.errors import PlanError
from hubplugin.manifest import model_name
from hubplugin.manifest.publish import MAIN, is_ref
from hubplugin.manifest.schema import EVALUATED, Document
from hubplugin.manifest.source import Source
from hubplugin.model.architectures.architecture import Dimensions
from serve import cpu_features

LONGEST_NAME = 96  # of a repo on the Hub


def check_base(config: Mapping[str, Any], where: str) -> None:
    """The base must be unquantized and generate text."""
    for key in ("quantization_config", "compression_config"):  # the second is an older word of compressed-tensors
        if config.get(key) is not None:
            raise PlanError(f"{where}: {key}", "the base is already quantized", "name the original, unquantized model")
    if config.get("per_layer_config"):
        what = "layers have settings of their own, which only transformers knows"
        raise PlanError(f"{where}: per_layer_config", what, "use a model whose layers are alike")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = f"{names!r} is no list of classes"
        raise PlanError(f"{where}: architectures", what, "name the class in a list, or leave the key out")
    if names and not any(name.endswith("ForCausalLM") for name in names):
        raise PlanError(f"{where}: architectures", f"{names[0]} does not generate text", "name a ...ForCausalLM model")


def check_sources(document: Document, dims: Dimensions) -> None:
    """Token sources against the model's context, and evaluation against calibration."""
    manifest = document.manifest
    sources: dict[str, Source] = dict(manifest.sources())
    for place, source in sources.items():
        if dims.context is not None and source.sequence_length > dims.context:
            raise PlanError(
                f"{document.path}: {place}.{source.length_key}",
                f"{source.sequence_length} tokens are longer than this model's context of {dims.context}",
                f"use {source.length_key}: {dims.context} or fewer",
            )
    speed = manifest.evaluate.speed if manifest.evaluate else None
    if speed and dims.context is not None and (length := speed.prompt_tokens + speed.output_tokens) > dims.context:
        raise PlanError(
            f"{document.path}: evaluate.speed",
            f"prompt and answer of {length} tokens are longer than this model's context of {dims.context}",
            f"use prompt_tokens and output_tokens of {dims.context} or fewer together",
        )
    seeds = {source.seed for place, source in sources.items() if source.self_ and not place.startswith(EVALUATED)}
    for place, source in sources.items():
        if place.startswith(EVALUATED) and source.self_ and source.seed in seeds:
            raise PlanError(
                f"{document.path}: {place}.seed",
                f"the same samples (seed {source.seed}) would calibrate and measure",
                f"use another seed, such as {max(seeds) + 1}",
            )


def check_files(document: Document) -> None:
    """Every text file that a source names is there, before any work. Raises PlanError; reads none of them."""
    for place, source in document.manifest.sources():
        for name in source.files or ():
            if not (document.folder / name).is_file():
                raise PlanError(
                    f"{document.path}: {place}.files",
                    f"there is no file {name} in {document.folder}",
                    "give files relative to the manifest, or whole paths",
                )


def notes(document: Document) -> tuple[str, ...]:
    """What a plan says of the evaluation on this machine."""
    evaluate = document.manifest.evaluate
    if evaluate is None or evaluate.dtype == "float32" or cpu_features.has(cpu_features.FAST_BFLOAT16):
        return ()
    why = f"this CPU multiplies {evaluate.dtype} no faster than float32"
    return (f"evaluate.dtype: {why}; without a GPU, evaluation stays in float32",)


def check_repos(document: Document) -> None:
    """Where variants go to, against each other, the base and the Hub's rules for names."""
    manifest = document.manifest
    where = f"{document.path}: publish.repo"
    taken = {(model_name.repo(manifest.model).casefold(), MAIN): "the base model"}
    for variant in manifest.variants:
        repo = manifest.repo_of(variant)
        name = repo.split("/", 1)[1]
        if len(name) > LONGEST_NAME:
            raise PlanError(
                where,
                f"{name!r} has {len(name)} characters, the Hub allows {LONGEST_NAME}",
                "shorten repo or the variant's name",
            )
        legal = re.fullmatch(r"\w|\w[\w.-]*\w", name, re.ASCII)
        if not legal or "--" in name or ".." in name or name.endswith(".git"):
            raise PlanError(
                where,
                f"{name!r} is no repo name on the Hub",
                "use letters, digits and single '-', '.', '_' between them; no .git at the end",
            )
        branch = _checked_refs(document, variant)
        place = (repo.casefold(), branch)
        if place in taken:
            at = repo if branch == MAIN else f"branch {branch} of {repo}"
            raise PlanError(where, f"{variant} and {taken[place]} would both be {at}", "rename the variant or the repo")
        taken[place] = variant


def _checked_refs(document: Document, variant: str) -> str:
    """The branch of a variant. Raises PlanError where the Hub takes no branch or tag of its name."""
    branch, tag = document.manifest.branch_of(variant), document.manifest.tag_of(variant)
    for key, name in (("branch", branch), ("tag", tag)):
        if name is not None and not is_ref(name):
            what = f"{name!r}, for {variant}, is no name that git takes"
            raise PlanError(f"{document.path}: publish.{key}", what, "rename the variant, or add a word to the name")
    if tag == branch:
        what = f"{variant}: its tag and its branch would both be {tag}"
        raise PlanError(f"{document.path}: publish.tag", what, 'add a word to the tag, such as "-v1.0"')
    return branch
