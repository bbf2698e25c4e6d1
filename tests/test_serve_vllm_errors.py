"""What vLLM's log says, in the shapes its real logs have: prefixes, repetitions, warnings that look like errors."""

import pytest

from serve import vllm_errors

# A warning that names an exception, as every log of vLLM on a small machine has it.
NOISE = (
    "(APIServer pid=7) WARNING 11-22 01:30:13 [system_utils.py:255] Found ulimit of 20000. This can cause fd limit "
    "errors like `OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n\n"
    "(APIServer pid=7) INFO 11-22 01:30:22 [model.py:733] Resolved architecture: LlamaForCausalLM\n"
)
VAGUE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"


def pydantic(message: str) -> str:
    return (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        f"  Value error, {message} [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )


def core(message: str) -> str:
    return (
        f"(EngineCore pid=75) ERROR 11-22 01:31:42 [core.py:1510]     raise ValueError(err_msg)\n"
        f"(EngineCore pid=75) ERROR 11-22 01:31:42 [core.py:1510] {message}\nProcess EngineCore:\n{message}\n{VAGUE}"
    )


@pytest.mark.parametrize(
    ("log", "what", "fix"),
    [
        ("OSError: [Errno 98] Address already in use", "the port was taken", "--port"),
        (
            "/venv/bin/python: Error while finding module\nModuleNotFoundError: No module named 'vllm'",
            "not installed",
            "pip",
        ),
        ("RuntimeError: operator torchvision::nms does not exist", "a CUDA build of torchvision", "pip uninstall"),
        (core("ValueError: Marlin does not support weight_bits = uint8b128. Only types = []"), "8-bit GPTQ", "bits: 4"),
        (core("ValueError: Marlin does not support group_size = 16. Only"), "group size 16", "32, 64"),
        (pydantic("Unsupported quantization config: bits=4, sym=False"), "4 bits and sym=False", "symmetric"),
        (
            pydantic("GPTQ group activation ordering (desc_act=True) is no longer supported"),
            "follow the activation order",
            "desc_act: false",
        ),
        (pydantic("Unknown quantization method: exl2. Must be one of ['awq']"), "method exl2", "GPTQ"),
        (pydantic("Model architectures ['Foo'] are not supported for now."), "architecture 'Foo'", "supported models"),
        (
            pydantic("The checkpoint you are trying to load has model type `foo` but Transformers does not recognize"),
            "does not know the model type foo",
            "model_type",
        ),
        (
            pydantic("The checkpoint you are trying to load has model type `nemotron-nas` but Transformers does not"),
            "differ in width",
            "install hubplugin",
        ),
        (
            pydantic("Model architectures ['UnevenHeadsForCausalLM'] are not supported for now."),
            "differ in width",
            "install hubplugin",
        ),
        (pydantic("The repository x contains custom code which must be executed"), "its own code", "architecture"),
        (core("ValueError: Unsupported CPU attention configuration: head_dim=40"), "head_dim=40", "head_dim 32"),
        (
            pydantic(
                "User-specified max_model_len (99999) is greater than the derived max_model_len "
                "(max_position_embeddings=1024 or model_max_length=None in model's config.json)."
            ),
            "max_model_len 99999 is more than the model's own 1024",
            "--max-model-len",
        ),
        (
            core("ValueError: Free memory on device cuda:0 (1/8) is less than desired GPU memory utilization"),
            "free",
            "stop",
        ),
        (core("ValueError: No available memory for the cache blocks. Try increasing"), "KV cache", "--max-model-len"),
        (core("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."), "out of memory", "smaller"),
        (core("OSError: [Errno 28] No space left on device"), "full", "room"),
        (
            core("SafetensorError: Error while deserializing header: incomplete metadata"),
            "truncated",
            "pull",
        ),
        (core("RuntimeError: Cannot find any model weights with `/x`"), "no weights", "pull"),
        ("ValueError: Couldn't instantiate the backend tokenizer from one of:", "no tokenizer", "tokenizer.json"),
        (
            core("ValueError: Following weights were not initialized from checkpoint: {'a'}"),
            "not initialized",
            "together",
        ),
        (
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. Gated repo",
            "does not give",
            "HF_TOKEN",
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find it on the disk and outgoing traffic has been "
            "disabled.",
            "not on this machine",
            "pull it first",
        ),
        (
            core("AssertionError: All providers in priority must be registered implementations."),
            "without hubplugin's plugin",
            "hubplugin_norms",
        ),
        (
            core("ValueError: Load format `hubplugin_dense` is not supported"),
            "without hubplugin's plugin",
            "hubplugin_dense",
        ),
        ("usage: entry.py [-h]\nentry.py: error: unrecognized arguments: --nonsense", "--nonsense", "vllm serve"),
    ],
)
def test_a_known_failure_is_named_with_its_remedy(log: str, what: str, fix: str) -> None:
    cause = vllm_errors.find_cause(NOISE + log)
    assert cause is not None
    assert what in cause.what and fix in cause.fix
    assert "\n" not in cause.what + cause.fix


def test_a_log_without_an_exception_has_no_cause() -> None:
    assert vllm_errors.find_cause(NOISE) is None
    assert vllm_errors.find_cause("") is None


def test_an_unknown_failure_is_shown_as_vllm_says_it() -> None:
    cause = vllm_errors.find_cause(NOISE + core("AssertionError: the moon is in the way"))
    assert cause == vllm_errors.Cause("AssertionError: the moon is in the way", "")


def test_the_line_that_only_points_to_the_cause_is_no_cause() -> None:
    assert vllm_errors.find_cause(NOISE + VAGUE) is None


def test_a_known_failure_wins_over_an_unknown_one_that_vllm_survived() -> None:
    cause = vllm_errors.find_cause("ImportError: no fancy kernels\n" + core("MemoryError"))
    assert cause is not None and cause.what.startswith("out of memory")


def test_a_long_message_is_cut() -> None:
    cause = vllm_errors.find_cause("ValueError: " + "x" * 5000)
    assert cause is not None and len(cause.what) == vllm_errors.LONGEST


@pytest.mark.parametrize("end", ["\u2028", "\x85"])
def test_a_message_does_not_end_at_a_separator_inside_a_name(end: str) -> None:
    cause = vllm_errors.find_cause(f"ValueError: no config in folder a{end}b/model\n")
    assert cause is not None and cause.what.endswith("b/model")
