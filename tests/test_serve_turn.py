"""A question and its answer, without a page."""

import asyncio

import pytest
from serve_helpers import fake

from serve.chat_page.turns.side import Settings, Side


@pytest.mark.parametrize(("models", "said"), [(["steady", "other"], "A list holds items"), ([], "")])
def test_a_question_that_comes_before_the_list_of_models_goes_to_the_first(models: list[str], said: str) -> None:
    async def ask(side: Side, url: str) -> None:
        side.ask("What is a list?")
        await side.listen(url, None, Settings("", 0.0, 20), asyncio.Event())

    with fake(models=models) as server:
        side = Side(None, [], [])
        asyncio.run(ask(side, server.url))
    assert side.over and side.said.startswith(said)
    assert side.name == (models[0] if models else None) and (side.error is None) == bool(models)
