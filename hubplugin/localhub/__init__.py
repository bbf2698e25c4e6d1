"""A small Hub on this machine, for demos, tests and air gaps: official clients talk to it unmodified.

It keeps everything in one folder, listens on loopback unless told otherwise, and leaves out what
publishing models does not need: git itself, comments on discussions, web pages, the read side of Xet,
garbage collection of blobs.
"""

from hubplugin.localhub.access import TOKEN_ENV, add_user
from hubplugin.localhub.server import Running, create_app, serve, start

__all__ = ["TOKEN_ENV", "Running", "add_user", "create_app", "serve", "start"]
