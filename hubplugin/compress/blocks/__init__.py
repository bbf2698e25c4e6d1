"""One block at a time: statistics of its inputs, a pure solve of each input group, new weights, forward.

Knows methods and modules. Knows no search and no file.
"""
