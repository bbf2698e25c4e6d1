"""A pruned or quantized model trained towards its base: block by block, then by distillation.

Knows two folders and token ids. Knows no manifest but its own step, no evaluation and no Hub.
"""
