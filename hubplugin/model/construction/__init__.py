"""From a config.json to transformers' modules without weights and its tokenizer, and whether transformers builds them.

Knows config.json, families and transformers' classes. Knows no weights.
"""
