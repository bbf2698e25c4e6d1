"""What is measured before anything is compressed: sensitivities, the pruned shape, the bits of each linear, latency.

Every search measures on the base, lets plan/choices choose, and returns a record of the report. Knows blocks and
methods. Knows no folder of a model and no evaluation.
"""
