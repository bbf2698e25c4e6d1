"""Families of models as rows of data, and the shapes and config.json that follow from them.

Knows names and sizes. Knows no torch, no weights and no method, so that `plan` may use it.
"""
