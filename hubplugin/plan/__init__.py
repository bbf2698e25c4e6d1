"""Manifest + headers + family -> a complete plan. Every cross-check is here, before any weight is read.

Knows shapes, schemes and vLLM's rules. Knows no torch, no weights and no network.
"""
