"""What a manifest and a model cannot do together, found before any work: one file for each subject.

Knows settings and sizes. Knows no weights and no search.
"""
