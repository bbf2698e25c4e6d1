"""From a YAML file to a checked manifest, and every fault in words about manifests; the JSON Schema.

Knows YAML and pydantic's errors. Knows no model and no torch.
"""
