"""The model card: a pure function of a report.

Knows reports. Knows no folder, no network and no torch.
"""
