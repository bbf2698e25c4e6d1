"""What was said as HTML: markdown, formulas, code, text that grows, and where two answers differ. Knows no page."""
