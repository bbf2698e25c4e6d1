"""bfloat16 on CPUs: products in a matrix unit (AMX) or by dot products (AVX-512), and what is made of them.

Sums over tokens, float32 products in parts, causal attention, RMSNorm. Knows bits and instructions; no method, no
model.
"""
