"""LoRA adapters as `serve --lora` names them, folders or repo ids, in folders.

Knows the Hub. Knows no engine, and nothing of what is in an adapter.
"""

from pathlib import Path

from huggingface_hub import constants

from hubplugin.errors import ServeError
from hubplugin.hub import snapshots
from hubplugin.hub.client import cache_folder, clear_errors, connect
from serve.endpoint.companions.adapters import CONFIG, WEIGHTS, Adapter

PULLED = (CONFIG, WEIGHTS)


def find(target: str) -> Adapter:
    """The adapter of a folder, or of a repo owner/name[@revision], pulled. Raises ServeError where there is none, and
    HubError as `snapshots.pull` does."""
    path = Path(target)
    if path.is_dir():
        return _checked(target, Adapter(path.resolve().name, path))
    repo, _, revision = target.partition("@")
    return _checked(target, Adapter(repo, _pulled(repo, revision or "main", target)))


def _checked(target: str, adapter: Adapter) -> Adapter:
    if not (adapter.folder / CONFIG).is_file():
        raise ServeError(f"--lora {target}", f"holds no {CONFIG}", "give an adapter that PEFT saved")
    return adapter


def _pulled(repo: str, revision: str, where: str) -> Path:
    api = connect()
    with clear_errors(where):
        if constants.HF_HUB_OFFLINE:
            return snapshots.cached(repo, revision, PULLED)
        info = api.model_info(repo, revision=revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        path = snapshots.download(repo, str(info.sha), sizes, PULLED, where)
        snapshots.remember(cache_folder(), repo, revision, str(info.sha))  # for a start without the Hub
        return path
