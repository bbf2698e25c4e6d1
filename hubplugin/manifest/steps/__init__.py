"""The settings of a variant's steps: one file for each kind of method.

Knows what each step may say. Knows no other step, no model and no torch.
"""
