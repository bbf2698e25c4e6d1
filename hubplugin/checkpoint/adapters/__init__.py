"""LoRA adapters on disk: PEFT's folder, and a model's folder with one in it.

Knows files and tensors by name. Knows no plan and no method.
"""
