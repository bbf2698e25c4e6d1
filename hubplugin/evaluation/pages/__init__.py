"""The report page: all variants of one or several runs in one HTML file, a pure function of their reports.

Knows reports and metric rows. Knows no network and no torch.
"""
