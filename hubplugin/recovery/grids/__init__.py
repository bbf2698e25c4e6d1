"""Quantized linears in training: codes stay or move by one, what stands beside them is trained.

Knows tensors and stored folders. Knows no loss and no order of blocks.
"""
