"""A pruned model trained back towards its base: block by block, then by distillation.

Knows two folders and token ids. Knows no manifest but its own step, no evaluation and no Hub.
"""
