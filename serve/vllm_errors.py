"""Why vLLM did not start, read from its log: the first true cause, in one line, with a remedy where one is
known.

vLLM prints the same failure several times, by several processes, under prefixes, and ends with an error that
says only "see root cause above". This file is the table of what is known about those lines; it knows nothing
about processes and starts none.
"""

import re
from dataclasses import dataclass

INSTALL = "install it: pip install 'hubplugin[gpu]' on a GPU machine, 'hubplugin[cpu]' elsewhere (see README)"
OTHER_FORMAT = "serve it on a GPU, or compress again with bits: 4 and group_size: 32, 64 or 128"
LONGEST = 300  # characters of a message that are shown


@dataclass(frozen=True)
class Cause:
    """What went wrong, and what to do about it; `fix` is empty where only the log can tell."""

    what: str
    fix: str


# An exception as a traceback ends with it, not a warning that mentions one.
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Interrupt))(?:: (.*))?$")
# What an argument parser says, or Python where it cannot find the module to run.
_COMPLAINT = re.compile(r"^[\w./-]+: [Ee]rror\b")
_PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\) ?)?(?:\[rank\d+\]: ?)*(?:ERROR [\d:\- ]+\[[\w./]+:\d+\] ?)?")
# They say that something failed, never what.
_EMPTY = (
    "Engine core initialization failed",
    "EngineCore encountered an issue",
    "WorkerProc initialization failed",
)

# Message, what is said (\1 from the message; empty: the message itself), what to do. The first fit counts.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"Address already in use|\[Errno 98\]",
        "the port was taken while vLLM started",
        "start again, or choose another port with --port",
    ),
    (r"No module named ['\"]vllm", "vLLM is not installed in this environment", INSTALL),
    (
        r"operator torchvision::nms does not exist",
        "a CUDA build of torchvision lies beside a CPU build of torch, and vLLM cannot be imported",
        "pip uninstall torchvision torchaudio torchcodec",
    ),
    (
        r"has no attribute '(?:cpu_gemm_wna16|fused_experts_cpu)'",
        "vLLM's kernels for this model's codes need AVX-512 (experts: AMX), and this CPU has none",
        "serve the base or a variant without codes here, or this one on another CPU or on a GPU",
    ),
    (
        r"weight_bits = uint8b128",
        "this vLLM has no kernel for 8-bit GPTQ on a CPU",
        OTHER_FORMAT,
    ),
    (
        r"Marlin does not support group_size = (-?\d+)",
        r"vLLM has no kernel for GPTQ with group size \1",
        "compress again with group_size: 32, 64, 128 or -1",
    ),
    (
        r"Unsupported quantization config: bits=(\d+), sym=(\w+)",
        r"vLLM loads no GPTQ with \1 bits and sym=\2",
        "use 4 or 8 bits and symmetric grids",
    ),
    (
        r"desc_act=True.*no longer supported",
        "vLLM no longer loads GPTQ whose groups follow the activation order (desc_act: true)",
        "compress again with hubplugin, which writes desc_act: false",
    ),
    (
        r"(?:Unknown|Invalid) quantization method:? '?hubplugin_lowrank",
        "some of its linears are two factors, and vLLM runs without hubplugin's plugin, which multiplies by both",
        "install hubplugin in the environment of vLLM, and do not leave it out of VLLM_PLUGINS",
    ),
    (
        r"Unknown quantization method: hubplugin_codebook",
        "its weights are codebooks, and vLLM runs without hubplugin's plugin, which makes dense weights of them",
        "install hubplugin in the environment of vLLM, and do not leave it out of VLLM_PLUGINS",
    ),
    (
        r"Load format `hubplugin_dense` is not supported",
        "dense weights are to be made of its codes, and vLLM runs without hubplugin's plugin, which makes them",
        "install hubplugin again beside vLLM, and do not leave hubplugin_dense out of VLLM_PLUGINS",
    ),
    (
        r"All providers in priority must be registered",
        "vLLM runs without hubplugin's plugin, which makes the norms known that it is to take",
        "install hubplugin again beside vLLM, do not leave hubplugin_norms out of VLLM_PLUGINS, or add "
        "-- --ir-op-priority.rms_norm native --ir-op-priority.fused_add_rms_norm native",
    ),
    (
        r"Unknown quantization method: ([\w-]+)",
        r"vLLM does not know the quantization method \1",
        "use a GPTQ folder, or the base model",
    ),
    (
        r"Failed to find a kernel|no kernel",
        "vLLM has no kernel for this quantization on this machine",
        OTHER_FORMAT,
    ),
    (
        r"multiples of 32|not divisible by .*partition|is not divisible by weight",
        "",
        "keep widths that 64 divides; `hubplugin plan` checks this before any work",
    ),
    (
        r"model type `nemotron-nas`|Model architectures \[.*UnevenHeadsForCausalLM.*\] are not supported",
        "its layers differ in width, and vLLM runs without hubplugin's plugin, which brings the class for that",
        "install hubplugin in the environment of vLLM, and do not leave it out of VLLM_PLUGINS",
    ),
    (
        r"Model architectures \[(.*?)\] are not supported",
        r"vLLM does not know the architecture \1",
        "see vLLM's list of supported models",
    ),
    (
        r"model type `([^`]+)` but Transformers does not recognize",
        r"the installed transformers does not know the model type \1",
        "check model_type in config.json, or use a model of a supported family",
    ),
    (
        r"contains custom code|trust_remote_code",
        "the model brings its own code, which is never run here",
        "use a model whose architecture vLLM knows",
    ),
    (
        r"Unsupported CPU attention configuration: (.*)",
        r"vLLM's CPU attention does not support \1",
        "use head_dim 32, 64, 80, 96, 112 or 128, or serve it on a GPU",
    ),
    (
        r"max_model_len \((\d+)\) is greater than the derived max_model_len \(.*?=(\d+)",
        r"max_model_len \1 is more than the model's own \2",
        "ask for less with --max-model-len",
    ),
    (
        r"Free memory on device.*is less than desired GPU memory utilization",
        "too little of the GPU's memory is free",
        "stop what else runs there, or pass --gpu-memory-utilization with a smaller share",
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache",
        "the KV cache does not fit for this context length",
        "ask for less with --max-model-len, or give more with --kv-cache-memory-bytes",
    ),
    (
        r"out of memory|OutOfMemoryError|DefaultCPUAllocator|Cannot allocate memory|^MemoryError",
        "out of memory while loading the model",
        "ask for less with --max-model-len, serve a smaller variant, or use a machine with more memory",
    ),
    (
        r"No space left on device",
        "the disk (or /dev/shm) is full",
        "make room; in a container, give it more shared memory",
    ),
    (
        r"deserializing header|incomplete metadata|file not fully covered|InvalidHeader|HeaderTooLarge",
        "a safetensors file of the model is truncated or corrupted",
        "write or pull the folder again",
    ),
    (
        r"Cannot find any model weights|No model weights found|model\.safetensors.*No such file",
        "the folder holds no weights",
        "write or pull the folder again",
    ),
    (
        r"instantiate the backend tokenizer|Can't load tokenizer",
        "the folder holds no tokenizer",
        "write or pull the folder again, with tokenizer.json",
    ),
    (
        r"weights were not initialized from checkpoint|no module or parameter named",
        "",
        "the weights and config.json do not belong together: write or pull the folder again",
    ),
    (
        r"size of tensor a|shape mismatch|size mismatch|assert.*shape|AssertionError.*loaded",
        "a weight's shape is not the one config.json says",
        "the weights and config.json do not belong together: write or pull the folder again",
    ),
    (
        r"gated repo|GatedRepoError|401 Client Error|RepositoryNotFoundError|403 Client Error",
        "the Hub does not give the model to this user",
        "check the repo id, accept the model's terms on its page, set HF_TOKEN",
    ),
    (
        r"outgoing traffic has been disabled|requested files in the local cache|couldn't connect to",
        "the model is not on this machine and the Hub cannot be reached",
        "pull it first, or give a folder",
    ),
    (
        r"(unrecognized arguments: .*)",
        r"\1",
        "vLLM does not know these arguments: see `vllm serve --help`",
    ),
)


def find_cause(log: str) -> Cause | None:
    """The first cause in a log of vLLM; None where no line looks like one.

    A known cause anywhere in the log wins over an unknown one before it, for vLLM also logs exceptions it
    survives.
    """
    messages = list(_messages(log))
    for message in messages:
        for pattern, what, fix in _KNOWN:
            match = re.search(pattern, message)
            if match:
                return Cause(_shorten(match.expand(what) if what else message), fix)
    return Cause(_shorten(messages[0]), "") if messages else None


def _messages(log: str) -> list[str]:
    """Every exception in the log as one line, in order, without those that say nothing."""
    lines = [_PREFIX.sub("", line).rstrip() for line in log.split("\n")]
    messages = []
    for index, line in enumerate(lines):
        if _COMPLAINT.match(line):
            messages.append(line)
        exception = _EXCEPTION.match(line)
        if not exception:
            continue
        kind, text = exception[1], exception[2] or ""
        if kind == "ValidationError":  # pydantic's second line carries the message
            following = lines[index + 1].strip() if index + 1 < len(lines) else ""
            text = following.removeprefix("Value error, ") or text
            text = re.sub(r" \[type=.*", "", text)
        if not text.startswith(_EMPTY) and kind != "KeyboardInterrupt":
            messages.append(f"{kind}: {text}" if text and kind != "ValidationError" else text or kind)
    return messages


def _shorten(message: str) -> str:
    message = " ".join(message.split())
    return message if len(message) <= LONGEST else message[: LONGEST - 1] + "…"
