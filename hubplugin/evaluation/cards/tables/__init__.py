"""The tables of a card that have rules of their own: its top, bytes by component, tasks, speed.

A table is a list of lines of Markdown; what it shows are numbers of a report.
"""
