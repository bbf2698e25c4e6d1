"""Options of vLLM that users pass through: those that are ours, or cannot work, are refused before anything starts."""

from collections.abc import Sequence

from hubplugin.errors import ServeError

OURS = "is set by hubplugin"
# option -> why not, what instead
REFUSED = {
    "--model": (OURS, "name the model before --"),
    "--served-model-name": (OURS, "give --name before --"),
    "--host": (OURS, "give --host before --"),
    "--port": (OURS, "give --port before --"),
    "--uds": (OURS, "leave it out"),
    "--api-key": ("secrets on a command line are seen by everybody on the machine", "set VLLM_API_KEY, or give --keys"),
    "--trust-remote-code": ("would run code of the model's repo", "serve a model that vLLM knows"),
    "--allowed-origins": ("would let pages of others use the endpoint", "put a server of yours in between"),
}
REFUSED_ON_CPU = {
    "--enable-sleep-mode": ("does not exist on a CPU", "leave it out; idle engines stop where memory is short"),
    "--pipeline-parallel-size": ("is broken in vLLM's CPU build (0.32)", "leave it out"),
    "-pp": ("is broken in vLLM's CPU build (0.32)", "leave it out"),
}
RAY = "--distributed-executor-backend"
HALF = "float16", "bfloat16", "half"
KV_CACHES_ON_CPU = ("auto", *HALF, "fp8", "fp8_e4m3", "fp8_e5m2")


def check(options: Sequence[str], device: str) -> None:
    """Raise ServeError for the first option that is not passed on."""
    known = REFUSED | (REFUSED_ON_CPU if device == "cpu" else {})
    for index, word in enumerate(options):
        name, _, value = word.partition("=")
        name = name.replace("_", "-")
        if name in known:
            what, fix = known[name]
            raise ServeError(name, what, fix)
        if not word.startswith("-") and index == 0:  # later ones may be values of an option that takes several
            raise ServeError(word, "is no option of vLLM", "options look like --max-num-seqs 16")
        following = value or (options[index + 1] if index + 1 < len(options) else "")
        if device == "cpu" and name == RAY and following == "ray":
            raise ServeError(f"{RAY} ray", "vLLM refuses Ray on a CPU", "leave it out")


def check_kv_cache(options: Sequence[str]) -> None:
    """Raise ServeError for a KV cache with which a CPU answers with other tokens than the model's (docs/log.md), though
    vLLM 0.32 starts with it: one of 16 bits under float32, or of a data type that its CPU attention does not know and
    takes for another. `options` are all of an engine on a CPU, ours first."""
    kept = value_of(options, "--kv-cache-dtype")
    where = f"--kv-cache-dtype {kept}"
    if kept is not None and kept not in KV_CACHES_ON_CPU:
        fix = f"leave it out, or take one of {', '.join(name for name in KV_CACHES_ON_CPU if name != 'half')}"
        raise ServeError(where, "vLLM 0.32 has no such KV cache on a CPU, and answers with wrong tokens", fix)
    if value_of(options, "--dtype") in ("float32", "float") and kept in HALF:
        what = "under float32, in which the model is computed on this CPU, vLLM 0.32 answers with wrong tokens"
        raise ServeError(where, what, "leave it out, or add --dtype bfloat16, which is slower here")


def value_of(options: Sequence[str], name: str) -> str | None:
    """The value that an option of vLLM is given; the last one counts. None where it is not given."""
    value = None
    for word, following in zip(options, [*options, ""][1:], strict=True):
        key, equals, given = word.partition("=")
        if key.replace("_", "-") == name:
            value = given if equals else following
    return value
