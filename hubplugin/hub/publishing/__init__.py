"""From finished folders to repos: whether a variant may be published, where, beside what others did there.

Knows reports, cards and repos. How files travel is in hub/sending.
"""
