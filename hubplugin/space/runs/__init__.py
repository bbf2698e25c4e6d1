"""Runs for visitors: a process that can be ended, the folder it works in, and who it belongs to.

Knows processes, folders and sessions. Knows no page.
"""
