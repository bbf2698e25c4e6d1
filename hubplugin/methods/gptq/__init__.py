"""GPTQ: the loop over columns in torch, for CPUs and in Triton; the grid; coordinate descent.

Knows a weight and its second moments. Knows no module, no model and no file.
"""
