"""A small Hugging Face Hub on this machine, for demos, tests and networks without internet.

Unmodified clients (huggingface_hub, hf, transformers, datasets) work with it through HF_ENDPOINT. It keeps everything
in one folder and listens on loopback by default. It does not have the git protocol, comments on discussions, web
pages, downloads by Xet (files are downloaded over HTTP) or garbage collection of blobs.
"""

from hubplugin.localhub.app import create_app
from hubplugin.localhub.server import Running, serve, start
from hubplugin.localhub.users import TOKEN_ENV, add_user

__all__ = ["TOKEN_ENV", "Running", "add_user", "create_app", "serve", "start"]
