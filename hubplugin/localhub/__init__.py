"""A small Hugging Face Hub on this machine, for demos, tests and networks without internet.

Unmodified clients (huggingface_hub, hf, transformers, datasets) work with it through HF_ENDPOINT. It keeps everything
in one folder and listens on loopback by default. Repos have cards, branches, tags, pull requests, access and files, as
on the real Hub. It does not have the git protocol, web pages, Spaces that run, jobs, webhooks, likes or garbage
collection of blobs: clients that ask for such things are told so (501).
"""

from hubplugin.localhub.app import create_app
from hubplugin.localhub.server import Running, serve, start
from hubplugin.localhub.users import TOKEN_ENV, add_user

__all__ = ["TOKEN_ENV", "Running", "add_user", "create_app", "serve", "start"]
