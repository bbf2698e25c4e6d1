"""What steps that train cannot do with a model, with other steps, or with their text: each contradiction a PlanError.

Knows settings, sizes and vocabularies. Knows no weights and no training.
"""
