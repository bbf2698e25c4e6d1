"""How much is held or written at one time: the engine keeps to these numbers, and `plan` counts memory with them."""

BLOCK_TOKENS = 2**16  # at most that blocks are trained on by recovery, all of them held
MICRO_TOKENS = 2048  # tokens that pass a block in one forward call
DEVICE_MICRO_TOKENS = 32768  # the same on an accelerator, where fewer would leave it waiting for Python
STEP_TOKENS, TUNE_STEP_TOKENS = 2048, 512  # that one step of a training learns from: of weights, of scales or adapters
PROBE_TOKENS = 1024  # that are kept once for every change that a search tries
REMOVAL_TOKENS = 4096  # that the few layers which may go next are tried on
LOGITS_BYTES = 256 * 2**20  # of the positions whose logits exist at one time
SHARD_BYTES = 2 * 2**30  # of weights in one file
