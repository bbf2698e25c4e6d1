"""Tensors on disk: headers, safetensors, encodings, file formats, dequantizing, and what a killed run left.

Knows files and tensors by name. Knows no family, no plan and no method.
"""
