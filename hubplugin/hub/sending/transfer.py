"""How files get to the Hub through a network that breaks: tried again, and nothing sent twice that has arrived.

Knows waits and uploads. Knows no repo's state and no commit.
"""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi

from hubplugin.checkpoint.model_folder import WEIGHTS, allowed
from hubplugin.errors import HubUnreachable
from hubplugin.progress import progress

WAITS = (1.0, 3.0, 9.0)  # seconds before each further try; the client itself tries single uploads again, too
MOST_WAIT = 300.0  # seconds that the Hub may ask for; its limits are of five minutes
ALONE_BYTES = 1_000_000  # files of this size and more are uploaded one by one

Result = TypeVar("Result")


def retried(work: Callable[[int], Result], what: str) -> Result:
    """Do work, and again where the Hub could not be reached or answered 429 or 5xx. Any other refusal ends it at once.

    `work` is given the number of earlier tries, and must bear being repeated. A wait that the Hub asks for is kept,
    where it is not longer than MOST_WAIT.
    """
    for number, wait in enumerate(WAITS):
        try:
            return work(number)
        except HubUnreachable as error:
            if error.wait > MOST_WAIT:
                raise
            seconds = max(wait, error.wait)
            progress(f"{what}: {error.what}; once more in {seconds:g} s")
            time.sleep(seconds)
    return work(len(WAITS))


def upload(api: HfApi, repo: str, revision: str, files: Iterable[CommitOperationAdd], *, new: bool = False) -> None:
    """Send the large files, one by one, ahead of the commit that will name them; `new`: of a new pull request.

    The Hub knows a file from the moment it is whole, and is not sent it again. Of files that are uploaded together it
    knows none before all are there: a break would cost all of them.
    """
    for file in files:
        if allowed(file.path_in_repo, WEIGHTS) or file.upload_info.size >= ALONE_BYTES:
            api.preupload_lfs_files(repo, [file], revision=revision, create_pr=new or None, free_memory=False)
