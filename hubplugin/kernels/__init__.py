"""Arrays in, arrays out: second moments on CPU and CUDA, logits, transposed copies, threads.

Knows dtypes and instruction sets. Knows no linear, no method and no file.
"""
