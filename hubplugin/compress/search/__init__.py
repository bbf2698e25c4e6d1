"""What is measured before anything is compressed: sensitivities, the pruned shape, the bits of each linear, latency.

Knows blocks and methods. Knows no folder and no evaluation.
"""
