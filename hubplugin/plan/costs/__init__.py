"""What making a variant takes: memory and time, estimated from shapes alone.

Knows shapes and settings. Measures nothing.
"""
