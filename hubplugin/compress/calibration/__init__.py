"""Token sequences for calibration and evaluation: from files, datasets or the base model itself.

Knows tokenizers and texts. Knows no method and no block.
"""
