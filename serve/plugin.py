"""What vLLM runs in each of its processes as a general plugin: ask the kernel for AMX before a 4-bit kernel uses it.

vLLM's 16-bit-activation kernel for 4-bit weights executes AMX instructions without asking; where nothing else in the
process has asked (a model so small that no dense layer goes through AMX), Linux ends it by SIGILL. Loading a checkpoint
does not depend on this plugin, and it changes no result.
"""


def request_amx() -> None:
    """Idempotent; does nothing on a CPU without AMX."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
