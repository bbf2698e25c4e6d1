"""The names of file formats for quantized weights, as they stand in config.json.

Knows names. Knows no torch, so that `plan` may use them.
"""

GPTQ = "gptq"  # AutoGPTQ's tensors
PACK_QUANTIZED = "pack-quantized"  # compressed-tensors': codes of any width in 32-bit words
INT_QUANTIZED = "int-quantized"  # compressed-tensors': int8 weights, for int8 activations
NVFP4 = "nvfp4-pack-quantized"  # compressed-tensors': FP4 numbers, two in a byte, with a float8 scale for 16 of them
COMPRESSED_TENSORS = "compressed-tensors"  # the format that knows the last three
CODEBOOK = "hubplugin_codebook"  # ours: codes of any width in 32-bit words, and the centroids they name
