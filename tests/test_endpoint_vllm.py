"""The real vLLM behind the endpoint: official clients are answered, failures are said. The last test kills it."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapter_helpers
import httpx
import pico
import prune_helpers
import psutil
import pytest
import torch
from safetensors.torch import save_file
from serve_helpers import DEMO, session_of, until

from hubplugin.checkpoint.dense_view import DenseView
from serve import cpu_features, ports, vllm_settings
from serve.chat_page.markup import tokens
from serve.chat_page.turns import divergence, turn
from serve.chat_page.turns.side import Settings, Side

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
BASE = DEMO.name
QUESTION: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "What is a list?"}], "seed": 0}
BENCH = """
import argparse, asyncio, json, sys
from vllm.benchmarks.serve import add_cli_args, main_async
parser = argparse.ArgumentParser()
add_cli_args(parser)
print(json.dumps(asyncio.run(main_async(parser.parse_args(sys.argv[1:]))), default=str))
"""
# a template that has a place for tools, as Qwen's families write their calls
TOOLED = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CITY = {"city": {"type": "string", "maxLength": 12}}
SCHEMA = {"type": "object", "properties": CITY, "required": ["city"], "additionalProperties": False}
# strict: without it vLLM 0.32 asks for JSON, and not for the schema
TOOL = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": SCHEMA}}
# what stands beside an adapter of a dense model: one of a model in 4 bits, for which vLLM has no kernel on every CPU
INT4 = {"method": "gptq", "bits": 4, "group_size": 32}
HAS_INT4_KERNELS = vllm_settings.find_device() == "cuda" or cpu_features.has(cpu_features.AVX512)
# as /v1/models lists them: engines in the order they were named in, and then adapters
MODELS = [BASE, "pico", "tooled", *["coded"] * HAS_INT4_KERNELS, "added", *["recovered"] * HAS_INT4_KERNELS]


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str  # with /v1
    logs: Path

    def post(self, path: str = "/chat/completions", **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=240)

    def metric(self, name: str, variant: str = BASE) -> float:
        text = httpx.get(self.url.removesuffix("/v1") + "/metrics", timeout=20).text
        found = re.findall(rf'^{name}{{.*variant="{variant}".*}} (\S+)$', text, flags=re.MULTILINE)
        return sum(map(float, found))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("endpoint")
    pico.write(folder / "pico")
    adapter_helpers.write(folder / "added", folder / "pico")
    shutil.copytree(DEMO, folder / "tooled")
    (folder / "tooled" / "chat_template.jinja").write_text(TOOLED, encoding="utf-8")
    words = [
        "serve",
        str(DEMO),
        str(folder / "pico"),
        str(folder / "tooled"),
        "--max-model-len",
        "256",
        "--logs",
        str(folder / "logs"),
    ]
    if HAS_INT4_KERNELS:
        prune_helpers.make(folder / "pico", folder / "coded", prune_helpers.decided(folder / "pico", INT4))
        adapter_helpers.write(folder / "recovered", folder / "pico", name=str(folder / "coded"))
        words += [str(folder / "coded"), "--lora", str(folder / "recovered")]
    words += ["--lora", str(folder / "added"), "--max-body", "1", "--port", str(ports.choose(ports.LOOPBACK, None))]
    process = subprocess.Popen(
        [sys.executable, "-m", "hubplugin", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url, process.wait(60)
    yield Running(process, url, folder / "logs")
    process.terminate()
    process.wait(60)


def test_models_are_listed_and_each_answers(running: Running) -> None:
    rows = httpx.get(f"{running.url}/models").json()["data"]
    states = [(row["id"], row["state"], row["tools"]) for row in rows]
    assert [name for name, _, _ in states] == MODELS
    assert {state for name, state, _ in states if name != BASE} == {"stopped"} and states[0][1] == "ready"
    assert [name for name, _, tools in states if tools] == ["tooled"]
    said = running.post(**QUESTION, max_tokens=12).json()
    assert said["model"] == BASE and said["choices"][0]["message"]["content"].strip()
    said = running.post("/completions", model="pico", prompt="abc", max_tokens=3).json()
    assert said["model"] == "pico" and said["usage"]["completion_tokens"] == 3


def test_the_chat_page_measures_kl_between_two_models(running: Running) -> None:
    def asked(*names: str) -> list[Side]:
        async def ask() -> list[Side]:
            sides = [Side(name, [], []) for name in names]
            settings = Settings("", 0.0, 24, colour=tokens.KL)
            async for _ in turn.answer(running.url, None, "What is a list?", sides, settings):
                pass
            return sides

        return asyncio.run(ask())

    for same in asked(BASE, "tooled"):  # the same weights
        assert len(same.kl) == len(same.logprobs) > 3 and same.note.startswith(f"KL({same.name} ‖ ")
        assert all(kl is not None and kl < 0.01 for kl in same.kl)
    for other in asked("pico", "added"):  # of one engine with an adapter, which is not asked to score a text
        assert 0 < len(other.kl) <= len(other.logprobs) and "gives no log-probabilities of a prompt" in other.note
    base, strange = asked(BASE, "pico")  # another vocabulary
    assert not base.kl and not strange.kl and base.note.startswith(divergence.NOT_SHOWN)
    assert running.metric("hubplugin_engine_restarts_total", "pico") == 0


def test_an_adapter_answers_as_the_model_does_that_it_is_merged_into(running: Running) -> None:
    _hold_adapter(running, running.logs.parent / "pico", "pico", "added")


@pytest.mark.skipif(not HAS_INT4_KERNELS, reason="vLLM has no kernel for 4-bit weights on this CPU")
def test_an_adapter_of_a_quantized_model_answers_as_the_merged_one_does(running: Running, tmp_path: Path) -> None:
    view = DenseView(running.logs.parent / "coded")
    dense = pico.write(tmp_path / "dense", dtype=torch.float32)
    save_file({name: view.get(name).float() for name in view.names()}, dense / "model.safetensors", {"format": "pt"})
    _hold_adapter(running, dense, "coded", "recovered")


def _hold_adapter(running: Running, base: Path, name: str, adapter: str) -> None:
    """A model's and its adapter's log-probabilities against the dense base's, and the same with the adapter merged."""
    folder, ids = running.logs.parent, [5, 17, 29, 3]
    merged = adapter_helpers.merged(folder / adapter, base, base.parent / f"{adapter}-merged")
    expected = {model: _log_probabilities(path, ids) for model, path in ((name, base), (adapter, merged))}
    assert max(abs(expected[adapter] - expected[name])) > 1, "another model"
    for model, rows in expected.items():
        asked = {"prompt": ids, "max_tokens": 1, "logprobs": 5, "return_tokens_as_token_ids": True}
        said = running.post("/completions", model=model, **asked).json()
        assert said["model"] == model
        (top,) = said["choices"][0]["logprobs"]["top_logprobs"]
        assert len(top) >= 5
        for token, found in top.items():
            # of bfloat16, where a CPU computes in it
            assert found == pytest.approx(float(rows[int(token.removeprefix("token_id:"))]), abs=0.25), token


def _log_probabilities(folder: Path, ids: list[int]) -> Any:
    """Of all tokens behind these, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()


def test_tools_are_called_where_the_template_takes_them_and_refused_where_not(running: Running) -> None:
    import openai

    client = openai.OpenAI(base_url=running.url, api_key="none", max_retries=0)
    question: Any = {"messages": QUESTION["messages"], "tools": [TOOL], "max_tokens": 100, "temperature": 0}
    named = {"type": "function", "function": {"name": "weather"}}
    said = client.chat.completions.create(model="tooled", tool_choice=named, **question)
    (call,) = said.choices[0].message.tool_calls
    assert call.function.name == "weather" and list(json.loads(call.function.arguments)) == ["city"]
    assert client.chat.completions.create(model="tooled", **question).choices[0].message is not None
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        client.chat.completions.create(model=BASE, **question)


def test_an_answer_follows_a_json_schema(running: Running) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    said = running.post(**QUESTION, max_tokens=100, response_format=shape).json()
    assert isinstance(json.loads(said["choices"][0]["message"]["content"])["city"], str)


def test_openais_own_client_streams_and_reads_errors(running: Running) -> None:
    import openai

    client = openai.OpenAI(base_url=running.url, api_key="none", max_retries=0)
    with client.chat.completions.create(**QUESTION, max_tokens=12, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip()
    assert [row.id for row in client.models.list()] == MODELS
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.completions.create(model=BASE, prompt="word " * 400)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"max_tokens": -1}, 400),
        ({"temperature": "hot"}, 400),
        ({"messages": "hello"}, 400),
        ({"messages": []}, 400),
        ({"logprobs": True, "top_logprobs": 10_000}, 400),
        ({"messages": [{"role": "user", "content": "word " * 200_000}]}, 400),
        ({"messages": [{"role": "user", "content": "w" * 2**21}]}, 413),
        ({"response_format": {"type": "json_schema"}}, 400),
    ],
)
def test_what_cannot_be_answered_is_never_a_servers_error(body: dict[str, Any], status: int, running: Running) -> None:
    answer = running.post(**{**QUESTION, **body})
    assert answer.status_code == status and answer.json()["error"]["message"], answer.text
    assert running.post(**QUESTION, max_tokens=2).status_code == 200


def test_two_hundred_streams_at_once_are_whole_and_their_own(running: Running) -> None:
    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(timeout=280, limits=httpx.Limits(max_connections=None)) as client:

            async def ask(number: int) -> str:
                body = {"model": BASE, "prompt": f"{number} " * 3, "max_tokens": 6, "stream": True, "ignore_eos": True}
                body |= {"temperature": 0, "return_token_ids": True, "stream_options": {"include_usage": True}}
                said = []
                async with client.stream("POST", f"{running.url}/completions", json=body) as answer:
                    assert answer.status_code == 200
                    async for line in answer.aiter_lines():
                        said.append(line)
                return "\n".join(said)

            return await asyncio.gather(*map(ask, range(200)))

    answers = asyncio.run(all_of_them())
    ids = set()
    for text in answers:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert text.rstrip().endswith("data: [DONE]") and events[-1]["usage"]["completion_tokens"] == 6
        assert len({event["id"] for event in events}) == 1
        ids.add(events[0]["id"])
    assert len(ids) == 200
    again = running.post("/completions", model=BASE, prompt="7 7 7 ", max_tokens=6, temperature=0, ignore_eos=True)
    assert again.status_code == 200


def test_a_client_that_goes_away_frees_its_place_in_vllm(running: Running) -> None:
    body = {**QUESTION, "max_tokens": 200, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{running.url}/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        for _ in range(6):  # the first says who speaks, before vLLM has begun
            next(lines)
        until(lambda: running.metric("vllm:num_requests_running") == 1, 5)
    gone = time.monotonic()
    until(lambda: running.metric("vllm:num_requests_running") == 0, 5)
    assert time.monotonic() - gone < 2


def test_vllms_own_bench_asks_it(running: Running, tmp_path: Path) -> None:
    words = ["--base-url", running.url.removesuffix("/v1"), "--model", BASE, "--tokenizer", str(DEMO)]
    words += ["--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "8", "--num-prompts", "6"]
    words += ["--ignore-eos", "--temperature", "0", "--disable-tqdm", "--ready-check-timeout-sec", "0"]
    done = subprocess.run([sys.executable, "-c", BENCH, *words], cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    assert found.get("completed") == 6 and found["total_output_tokens"] == 48, done.stderr[-3000:]


def test_lm_eval_asks_it(running: Running, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "x.jsonl").write_text('{"q": "A list is", "c": [" good", " bad"], "a": 0}\n' * 3)
    task = "task: x\ndataset_path: json\ndataset_kwargs: {data_files: {test: x.jsonl}}\ntest_split: test\n"
    task += "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: a\n"
    (tmp_path / "x.yaml").write_text(task + "metric_list: [{metric: acc}]\n")
    given = f"model={BASE},base_url={running.url}/completions,tokenizer={DEMO},tokenized_requests=False"
    words = ["--model", "local-completions", "--model_args", given, "--tasks", "x"]
    words += ["--include_path", ".", "--output_path", "o"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = tmp_path.glob("o/**/*.json")
    assert json.loads(results.read_text())["results"]["x"]["acc,none"] in (0.0, 1.0)


def test_an_engine_killed_in_the_middle_of_a_stream_is_told_and_replaced(running: Running) -> None:
    running.post(**QUESTION, max_tokens=2)
    body = {**QUESTION, "max_tokens": 200, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{running.url}/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        engines = psutil.Process(running.process.pid).children(recursive=True)
        (core,) = [process for process in engines if "EngineCore" in process.name() and _serves(process, running.logs)]
        core.kill()
        said = [line for line in lines if line]
    assert said[-1] == "data: [DONE]" and '"error"' in said[-2]
    assert running.post(**QUESTION, max_tokens=3).status_code == 200, "the next request waits for the restart"
    assert running.metric("hubplugin_engine_restarts_total") == 1


def _serves(core: psutil.Process, logs: Path) -> bool:
    """Whether an engine core is that of the demo model: its parent's command says so."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(DEMO) in " ".join(core.parent().cmdline()) and logs.exists()
    return False


def test_nothing_of_vllm_outlives_an_endpoint_that_is_killed(running: Running) -> None:
    supervisors = [child.pid for child in psutil.Process(running.process.pid).children(recursive=True)]
    assert any("EngineCore" in process.name() for pid in supervisors for process in session_of(pid))
    running.process.kill()
    running.process.wait()
    until(lambda: not any(session_of(pid) for pid in supervisors), 60)
