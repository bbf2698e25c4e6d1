"""The endpoint's routes, keys and limits, in front of stand-ins for vLLM."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from endpoint_helpers import endpoint, run

from serve import client
from serve.catalogue import Listed
from serve.endpoint.guard import Limits


def test_a_request_goes_to_the_model_that_it_names(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "owner/b")) as served:
            for name in ("a", "owner/b"):
                status, said = await served.ask(name, prompt="x", logprobs=3, unknown={"y": [1]})
                assert (status, said["model"]) == (200, name)
                assert said["asked"] == {"model": name, "prompt": "x", "logprobs": 3, "unknown": {"y": [1]}}
            assert served.stubs.started == ["a", "owner/b"]

    run(test())


def test_models_are_listed_with_what_their_reports_say(tmp_path: Path) -> None:
    async def test() -> None:
        facts = {"parent": "owner/base", "disk_ratio": 3.2, "mean_kl": 0.05}
        async with endpoint(tmp_path, ("a", "owner/b"), facts=facts) as served:
            async with served.client.get(f"{served.url}/v1/models") as answer:
                listed = await answer.json()
            assert [row["id"] for row in listed["data"]] == ["a", "owner/b"] and listed["object"] == "list"
            assert all(row.items() >= facts.items() and row["state"] == "stopped" for row in listed["data"])
            row = (await asyncio.to_thread(client.catalogue, served.url))[1]  # as the chat page reads it
            assert row == Listed("owner/b", state="stopped", **facts)
            async with served.client.get(f"{served.url}/v1/models/owner/b") as answer:
                assert (await answer.json())["id"] == "owner/b"
            async with served.client.get(f"{served.url}/v1/models/c") as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (404, "model_not_found")

    run(test())


def test_of_vllm_nothing_but_v1_is_reached(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            await served.ask()
            paths = ("/invocations", "/v1/../invocations", "/v1/%2e%2e/invocations", "/v1//invocations", "/tokenize")
            for path in paths:
                url = aiohttp.client.URL(served.url + path, encoded=True)
                async with served.client.post(url, json={"model": "a"}) as answer:
                    assert answer.status == 404 and "error" in await answer.json(), path
            async with served.client.get(f"{served.url}/v1/completions") as answer:
                assert answer.status == 405 and (await answer.json())["error"]["type"] == "invalid_request_error"
            async with served.client.options(f"{served.url}/v1/completions", headers={"Origin": "http://x"}) as answer:
                assert "Access-Control-Allow-Origin" not in answer.headers

    run(test())


def test_a_stream_comes_piece_by_piece_as_the_engine_sends_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            await served.ask()
            begun, came = asyncio.get_running_loop().time(), []
            body = {"model": "a", "stream": True, "prompt": "x", "wait": 0.1}
            async with served.client.post(f"{served.url}/v1/completions", json=body) as answer:
                assert answer.content_type == "text/event-stream" and answer.headers["X-Request-Id"]
                async for line in answer.content:
                    if line.strip():
                        came.append((asyncio.get_running_loop().time() - begun, line))
            assert [json.loads(line[6:])["number"] for _, line in came[:-1]] == list(range(5))
            assert came[-1][1] == b"data: [DONE]\n"
            assert came[-1][0] - came[0][0] > 0.35, "all at once: something buffers"

    run(test())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"model": NaN', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b'{"prompt": "x"}', 400, "model_missing"),
        (b'{"model": 3}', 400, "model_missing"),
        (b'{"model": ["a"]}', 400, "model_missing"),
        (b'{"model": "c"}', 404, "model_not_found"),
        (b'{"model": "a", "prompt": "' + b"x" * 5000 + b'"}', 413, "request_too_large"),
    ],
)
def test_a_bad_request_is_refused_as_openai_refuses_it(body: bytes, status: int, code: str, tmp_path: Path) -> None:
    async def test() -> None:
        limits = Limits(body_bytes=4000 if status == 413 else 2**20)
        async with endpoint(tmp_path, ("a", "b"), limits=limits) as served:
            async with served.client.post(f"{served.url}/v1/completions", data=body) as answer:
                assert answer.status == status
                error = (await answer.json())["error"]
            assert error["code"] == code and error["message"] and error["type"] == "invalid_request_error"
            assert error.keys() == {"message", "type", "param", "code"}
            assert served.stubs.started == []

    run(test())


def test_one_model_alone_need_not_be_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            assert (await served.ask(None, prompt="x"))[0] == 200

    run(test())


def test_what_the_engine_refuses_is_passed_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            status, said = await served.ask(prompt="bad")
            assert (status, said["error"]["message"]) == (400, "temperature must be non-negative")

    run(test())


def test_without_its_key_nothing_is_answered_and_the_key_stays_here(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, keys=("k-one", "k-two")) as served:
            for headers in ({}, {"Authorization": "Bearer k-on"}, {"Authorization": "k-one"}, {"X-Api-Key": "k-one"}):
                for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics")):
                    async with served.client.request(method, served.url + path, headers=headers, json={}) as answer:
                        assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_api_key")
            for key in ("k-one", "k-two"):
                headers = {"Authorization": f"Bearer {key}", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}
                body = {"model": "a", "prompt": "x"}
                async with served.client.post(f"{served.url}/v1/completions", json=body, headers=headers) as answer:
                    assert answer.status == 200
                    heard = (await answer.json())["headers"]
                assert heard.keys().isdisjoint({"authorization", "cookie", "x-forwarded-for"})
            for path in ("/health", "/ready"):
                async with served.client.get(served.url + path) as answer:
                    assert answer.status == 200
            assert [entry["client"] for entry in served.log if entry["status"] == 200 and entry["model"]] == [
                "key 0",
                "key 1",
            ]
            assert "k-one" not in json.dumps(served.log)

    run(test())


def test_requests_at_once_and_per_minute_are_limited_by_key(tmp_path: Path) -> None:
    async def test() -> None:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        async with endpoint(tmp_path, keys=("one", "two"), limits=Limits(at_once=2, per_minute=6)) as served:

            async def ask(headers: dict[str, str], wait: float = 0.0) -> tuple[int, str | None]:
                body = {"model": "a", "wait": wait}
                async with served.client.post(f"{served.url}/v1/completions", json=body, headers=headers) as answer:
                    return answer.status, answer.headers.get("Retry-After")

            assert await ask(one) == (200, None)
            came = await asyncio.gather(*(ask(one, 0.5) for _ in range(3)), ask(two))
            assert sorted(came[:3]) == [(200, None), (200, None), (429, "1")] and came[3] == (200, None)
            came = [await ask(one) for _ in range(5)]
            assert [status for status, _ in came] == [200, 200, 200, 429, 429]
            assert all(0 < int(after or 0) <= 10 for _, after in came[3:])

    run(test())


def test_the_tokens_of_an_answer_are_limited(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, limits=Limits(tokens=64)) as served:
            assert (await served.ask(prompt="x"))[1]["asked"]["max_tokens"] == 64
            assert (await served.ask(prompt="x", max_tokens=3))[1]["asked"]["max_tokens"] == 3
            for name, value in (("max_tokens", 65), ("max_completion_tokens", 100), ("max_tokens", "9")):
                status, said = await served.ask(prompt="x", **{name: value})
                assert (status, said["error"]["param"]) == (400, name)

    run(test())


def test_every_answer_has_an_id_and_the_log_says_no_prompt(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            for given, kept in (("mine-1", True), ("x" * 200, False), ("a b", False)):
                body = {"model": "a", "prompt": "s3cret"}
                headers = {"X-Request-Id": given}
                async with served.client.post(f"{served.url}/v1/completions", json=body, headers=headers) as answer:
                    assert (answer.headers["X-Request-Id"] == given) is kept
                    heard = (await answer.json())["headers"]["x-request-id"]
                    assert heard == answer.headers["X-Request-Id"]
            assert served.log[0]["id"] == "mine-1" and "s3cret" not in json.dumps(served.log)

    run(test())


def test_prometheus_reads_every_engine_with_its_variant(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b", "c")) as served:
            await served.ask("a")
            await served.ask("b")
            async with served.client.get(f"{served.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            for name in ("a", "b"):
                assert f'vllm:num_requests_running{{engine="0",variant="{name}"}} 0.0' in lines
                assert f'hubplugin_engine_ready{{variant="{name}"}} 1.0' in lines
            assert 'hubplugin_engine_ready{variant="c"} 0.0' in lines
            assert lines.count("# TYPE vllm:num_requests_running gauge") == 1
            assert 'hubplugin_requests_total{path="/v1/completions",status="200",variant="a"} 1.0' in lines

    run(test())
