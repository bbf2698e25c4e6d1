"""What vLLM runs in each of its processes as general plugins. Each is idempotent, and knows nothing of the others or of
how vLLM was started.

Asking the kernel for AMX before a 4-bit kernel uses it: vLLM's 16-bit-activation kernel for 4-bit weights executes AMX
instructions without asking; where nothing else in the process has asked (a model so small that no dense layer goes
through AMX), Linux ends it by SIGILL. Loading a checkpoint does not depend on this, and it changes no result.

Making linears known that are two factors: without it vLLM does not know their quantization_config.

Making codebooks known, which vLLM then loads as dense linears: without it vLLM does not know the quantization method.

Making a loader known that makes dense weights of codes: `--load-format` can name it then.

Making models known whose blocks differ, their configuration and, where blocks differ in heads, their class: without it
vLLM refuses them, and nothing else changes.

Making known the C++ kernels for norms on a CPU: `--ir-op-priority` can name them then.
"""


def request_amx() -> None:
    """Does nothing on a CPU without AMX."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def know_blocks() -> None:
    """Let transformers, and so vLLM, read `model_type: nemotron-nas`, and vLLM load blocks of differing heads."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from serve.decilm import HETEROGENEOUS_HEADS, MODEL_TYPE, BlocksConfig

    AutoConfig.register(MODEL_TYPE, BlocksConfig, exist_ok=True)
    if HETEROGENEOUS_HEADS not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(HETEROGENEOUS_HEADS, f"serve.heterogeneous_heads:{HETEROGENEOUS_HEADS}")


def know_factors() -> None:
    """Let vLLM load linears that are stored as two factors."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config

    from serve.codes import LOW_RANK

    if LOW_RANK not in QUANTIZATION_METHODS:
        from serve.low_rank import LowRankConfig

        register_quantization_config(LOW_RANK)(LowRankConfig)


def know_codebooks() -> None:
    """Let vLLM read `quant_method: hubplugin_codebook`."""
    import serve.codebook_linear  # noqa: F401 - registers the method, once in a process


def know_dense_loading() -> None:
    """Let vLLM take `--load-format hubplugin_dense`."""
    import serve.dense_loader  # noqa: F401 - registers it, once in a process


def know_norms() -> None:
    """Does nothing where vLLM does not run on a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import serve.rms_norm  # noqa: F401 - registers them, once in a process
