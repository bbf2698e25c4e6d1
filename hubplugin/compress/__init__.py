"""The plan applied to one block at a time, and written out as a folder.

Knows plan, methods and the forward pass. Knows no evaluation, no card and no Hub.
"""
