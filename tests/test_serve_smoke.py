"""The smoke run: a stand-in for vLLM shows the plumbing, vLLM itself shows the tokens."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from serve_helpers import DEMO, session_of

from hubplugin.errors import ServeError
from serve import engine, smoke, vllm_settings

SERVER = """
import json, sys
from aiohttp import web
answer = json.loads(sys.argv[1])
async def completions(request):
    asked = await request.json()
    return web.json_response({**answer, "asked": asked})
async def health(request):
    return web.Response()
server = web.Application()
server.router.add_post("/v1/completions", completions)
server.router.add_get("/health", health)
web.run_app(server, path=sys.argv[2], print=None)
"""


def replace_vllm(monkeypatch: pytest.MonkeyPatch, code: str, *words: str) -> list[engine.Engine]:
    """Run `code` where vLLM would be; returns the list that engines are put into."""
    started: list[engine.Engine] = []
    launch = engine.launch

    def stand_in(_program: list[str], **settings: Any) -> engine.Engine:
        arguments = [*words, str(settings["socket"])]
        own = {**settings, "arguments": arguments, "grace": 1.0, "fork_server": None}
        started.append(launch([sys.executable, "-c", code], **own))
        return started[0]

    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    monkeypatch.setattr(engine, "launch", stand_in)
    return started


def choice(index: int, token: int, logprob: float) -> dict[str, Any]:
    return {"index": index, "text": "a", "token_ids": [token], "logprobs": {"token_logprobs": [logprob]}}


def test_the_answers_become_the_result_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"choices": [choice(1, 8, -0.25), choice(0, 7, -0.5)]}
    started = replace_vllm(monkeypatch, SERVER, json.dumps(answer))
    assert smoke.generate(DEMO, [[1], [2]], 1, 30) == smoke.Smoke(["a", "a"], [[7], [8]], [[-0.5], [-0.25]])
    assert session_of(started[0].process.pid) == []


def test_a_vllm_that_fails_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_vllm(monkeypatch, "raise ValueError('Marlin does not support weight_bits = uint8b128.')")
    with pytest.raises(ServeError, match="8-bit GPTQ") as caught:
        smoke.generate(DEMO, [[1]], 1, 30)
    assert caught.value.where == str(DEMO)


def test_an_answer_without_tokens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    started = replace_vllm(monkeypatch, SERVER, json.dumps({"choices": [{"index": 0, "text": "a"}]}))
    with pytest.raises(ServeError, match="did not answer: KeyError"):
        smoke.generate(DEMO, [[1]], 1, 30)
    assert session_of(started[0].process.pid) == []


def test_a_vllm_that_hangs_is_stopped_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_vllm(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(ServeError, match="not ready in time"):
        smoke.generate(DEMO, [[1]], 1, 1)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_a_prompt_without_tokens_is_refused(prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    with pytest.raises(ServeError, match="prompts of at least one token"):
        smoke.generate(DEMO, prompts, 1, 30)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"holds no config\.json"):
        smoke.generate(tmp_path, [[1]], 1, 30)


@pytest.mark.serve
def test_vllm_generates_from_the_demo_model() -> None:
    result = smoke.generate(DEMO, [[5, 6, 7, 8], [100, 200]], 5, 240)
    assert len(result.texts) == len(result.token_ids) == len(result.logprobs) == 2
    for ids, logprobs in zip(result.token_ids, result.logprobs, strict=True):
        assert 0 < len(ids) == len(logprobs) <= 5
        assert all(0 <= token < 6144 for token in ids)
        assert all(value <= 0 for value in logprobs)
