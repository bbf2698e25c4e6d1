"""Variants of manifests as tasks of a Ray cluster: what a task asks for, what nodes must share, and one summary.

Ray schedules; nothing here does. What a task runs is the pipeline, as on one machine.
"""
