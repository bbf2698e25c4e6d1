"""Plots as inline SVG, in the page's own colours. Knows numbers and labels; no model. A label is text, never markup."""
