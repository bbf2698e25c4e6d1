"""Adapters for other variants of a manifest: what is refused, and what their plans say.

Knows plans and names; no torch, no weights.
"""
