"""Speed of finished folders in an engine: rounds in which base and variant take turns, and what the machine can do.

Knows folders, clocks and processors. Starts no engine: engine_choice.py does.
"""
