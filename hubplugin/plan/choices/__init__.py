"""What measurements may decide: pruned shapes and mixed precision, and the knapsack that chooses among them.

Knows sizes and costs. Losses are given; knows no weights.
"""
