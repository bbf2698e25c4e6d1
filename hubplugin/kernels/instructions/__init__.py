"""A CPU's own instructions where libraries leave them unused: its matrix unit (AMX), 512-bit registers, bfloat16.

Products, sums over tokens, causal attention, RMSNorm. Knows bits and instructions; no method and no model.
"""
