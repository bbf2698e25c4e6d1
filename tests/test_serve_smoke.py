"""The smoke run: a stand-in for vLLM shows the plumbing, vLLM itself shows the tokens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serve_helpers import DEMO, session_of

from hubplugin.errors import ServeError
from serve import engine, smoke, vllm_settings


def replace_child(monkeypatch: pytest.MonkeyPatch, code: str) -> list[Any]:
    """Run `code` where vLLM would be; returns the list that the supervisor's process is put into."""
    spawned: list[Any] = []
    spawn = engine.spawn

    def stand_in(_command: list[str], environment: dict[str, str], **files: Any) -> Any:
        spawned.append(spawn([sys.executable, "-c", code], environment, **files))
        return spawned[0]

    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    monkeypatch.setattr(engine, "spawn", stand_in)
    return spawned


def test_the_childs_line_becomes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"texts": ["a"], "token_ids": [[7]], "logprobs": [[-0.5]]})
    replace_child(monkeypatch, f"import sys; print({line!r}); sys.stderr.write('talk')")
    assert smoke.generate(DEMO, [[1]], 1, 30) == smoke.Smoke(["a"], [[7]], [[-0.5]])


def test_a_child_that_fails_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_child(monkeypatch, "raise ValueError('Marlin does not support weight_bits = uint8b128.')")
    with pytest.raises(ServeError, match="8-bit GPTQ") as caught:
        smoke.generate(DEMO, [[1]], 1, 30)
    assert caught.value.where == str(DEMO)


def test_a_child_that_prints_nonsense_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_child(monkeypatch, "print('hello')")
    with pytest.raises(ServeError, match="status 0 and no answer"):
        smoke.generate(DEMO, [[1]], 1, 30)


def test_a_child_that_hangs_is_stopped_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = replace_child(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(ServeError, match="did not generate 1 tokens in 1 s"):
        smoke.generate(DEMO, [[1]], 1, 1)
    assert session_of(spawned[0].pid) == []


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_a_prompt_without_tokens_is_refused(prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    with pytest.raises(ServeError, match="prompts of at least one token"):
        smoke.generate(DEMO, prompts, 1, 30)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"holds no config\.json"):
        smoke.generate(tmp_path, [[1]], 1, 30)


@pytest.mark.serve
def test_vllm_generates_from_the_demo_model_and_says_one_line() -> None:
    command = [sys.executable, "-m", "serve.smoke", str(DEMO), "--tokens", "5"]
    command += ["--prompt-ids", "[5, 6, 7, 8]", "--prompt-ids", "[100, 200]"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    result = smoke.Smoke(**json.loads(ran.stdout))  # nothing but the line is on stdout
    assert len(result.texts) == len(result.token_ids) == len(result.logprobs) == 2
    for ids, logprobs in zip(result.token_ids, result.logprobs, strict=True):
        assert 0 < len(ids) == len(logprobs) <= 5
        assert all(0 <= token < 6144 for token in ids)
        assert all(value <= 0 for value in logprobs)
