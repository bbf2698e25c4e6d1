"""LoRA adapters as `serve --lora` names them, folders or repo ids, in folders.

Knows the Hub. Knows no engine, and nothing of what is in an adapter.
"""

from pathlib import Path

from hubplugin.errors import ServeError
from hubplugin.hub import snapshots
from serve.endpoint.companions.adapters import CONFIG, WEIGHTS, Adapter

PULLED = (CONFIG, WEIGHTS)


def find(target: str) -> Adapter:
    """The adapter of a folder, or of a repo owner/name[@revision], pulled. Raises ServeError where there is none, and
    HubError as `snapshots.bring` does."""
    path = Path(target)
    if path.is_dir():
        return _checked(target, Adapter(path.resolve().name, path))
    repo, _, revision = target.partition("@")
    return _checked(target, Adapter(repo, snapshots.bring(repo, revision or "main", target, PULLED).path))


def _checked(target: str, adapter: Adapter) -> Adapter:
    if not (adapter.folder / CONFIG).is_file():
        raise ServeError(f"--lora {target}", f"holds no {CONFIG}", "give an adapter that PEFT saved")
    return adapter
