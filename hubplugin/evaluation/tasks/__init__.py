"""Tasks of lm-eval, asked of finished folders: base and variant, the same questions, compared question by question.

Knows folders and lm-eval, which is imported only when tasks are asked for.
"""
