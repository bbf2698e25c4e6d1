"""The forward pass, block by block, on transformers' own modules; families of models as rows of data.

Knows architectures, activations and devices. Knows no method, no manifest's variants and no metric.
"""
