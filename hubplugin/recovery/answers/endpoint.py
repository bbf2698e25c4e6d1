"""A teacher behind an OpenAI-compatible endpoint: answers to conversations, continuations of texts.

Knows requests and where its key is; the key goes to that endpoint and nowhere else. Knows no tokenizer.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from hubplugin.compress.calibration.prompts import Prompt
from hubplugin.errors import ServeError
from hubplugin.manifest.steps.training.distill import Answers
from hubplugin.recovery.answers.cache import Answer
from serve import client, server_address

AT_ONCE = 8  # requests: servers batch them
SERVERS_KEY = "VLLM_API_KEY"  # what serve's errors name


@dataclass(frozen=True)
class Endpoint:
    """A server that is asked."""

    settings: Answers

    @property
    def url(self) -> str:
        """As it is asked."""
        return server_address.endpoint(self.settings.endpoint or "")

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.settings.model} at {self.url}"

    @property
    def identity(self) -> str:
        """What answers are kept under."""
        return f"{self.url} {self.settings.model}"

    def answers(self, prompts: Sequence[Prompt], wanted: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """As `Teacher`, AT_ONCE requests at a time.

        Raises ServeError where the key is not set, the server cannot be reached or refuses.
        """
        secret = self._key()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = {pool.submit(self._answer, prompts[place], place, secret): place for place in wanted}
            try:
                for future in as_completed(asked):
                    yield asked[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _key(self) -> str | None:
        name = self.settings.key
        if name is None:
            return None
        if not (secret := os.environ.get(name)):
            raise ServeError(self.url, f"its API key is not here: {name} is not set", f"export {name}, and run again")
        return secret

    def _answer(self, prompt: Prompt, place: int, secret: str | None) -> Answer:
        asked = self.settings
        how = {
            "temperature": asked.temperature,
            "max_tokens": asked.max_tokens,
            "seed": asked.seed + place,
            "api_key": secret,
        }
        given = (asked.endpoint or "", asked.model or "")
        try:
            if prompt.turns:
                pieces = list(client.stream(*given, prompt.messages, **how))  # type: ignore[arg-type]
            else:
                pieces = [client.complete(*given, prompt.text, **how)]  # type: ignore[arg-type]
        except ServeError as error:
            fix = error.fix.replace(SERVERS_KEY, asked.key or "`key:` in the manifest")
            raise ServeError(error.where, error.what, f"{fix}; answers that have arrived are kept") from error
        return Answer("".join(piece.text for piece in pieces), pieces[-1].finish == "stop")
