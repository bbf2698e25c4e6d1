"""Weight sharing: codes that name one of a few values, which k-means or a format chooses, with GPTQ's error feedback.

`codebook.py` is the method; the others are its parts: centroids, their refit, FP4's scales, and the sweep over columns.
"""
