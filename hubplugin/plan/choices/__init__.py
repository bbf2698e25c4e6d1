"""What measurements may decide: pruned shapes and mixed precision, and the knapsack that chooses among them.

Knows sizes and costs. Knows no weights; what anything loses it is told.
"""
