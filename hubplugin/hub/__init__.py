"""The Hub: pull a base, peek at its headers, publish variants. The only importer of huggingface_hub.

Knows repos, commits and files. Knows no torch and nothing about compression.
"""
