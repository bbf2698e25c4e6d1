"""Black-box distillation: a teacher's answers as text, asked for once, and a student trained on their tokens.

Knows prompts, tokenizers, a folder or an endpoint. Knows no predictions of the teacher and no Hub.
"""
