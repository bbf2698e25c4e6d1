"""The manifest: its schema, one file for each step's settings, and how it is read.

Knows YAML and what a user may write. Knows no model, no torch and no network.
"""
