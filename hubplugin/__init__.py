"""Compress Hub models by manifest, measure them, publish them with an honest card, serve them on vLLM."""

__version__ = "0.1.0"
