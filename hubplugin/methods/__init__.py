"""Compression methods: (weight, second moments, settings) -> `Compressed`. One method, one file.

Knows the mathematics of docs/maths.md. Knows no module, no model and no file.
"""
