"""From a config.json to transformers' modules without weights, and whether transformers builds them at all.

Knows config.json, families and transformers' classes. Knows no weights and no file.
"""
