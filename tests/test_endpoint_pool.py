"""Engines behind the endpoint: started when asked, stopped for others, started again when they die."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from endpoint_helpers import Served, endpoint, run

from serve import vllm_settings
from serve.endpoint import offer, pool
from serve.endpoint.pool import State


async def until(true, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never became true"
        await asyncio.sleep(0.02)


def states(served: Served) -> dict[str, str]:
    return {name: slot.state.value for name, slot in served.pool.slots.items()}


def test_many_first_requests_start_one_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b")) as served:
            came = await asyncio.gather(*(served.ask(name, prompt="x") for name in "aabbab"))
            assert [said["model"] for _, said in came] == list("aabbab")
            assert sorted(served.stubs.started) == ["a", "b"]

    run(test())


def test_the_least_recently_used_engine_makes_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b", "c"), needs=(2, 2, 2), budget=5) as served:
            await served.ask("a")
            await served.ask("b")
            gone = served.pid("b")
            await served.ask("a")
            await served.ask("c")
            assert states(served) == {"a": "ready", "b": "stopped", "c": "ready"}
            assert not psutil.pid_exists(gone)
            await served.ask("b")
            assert states(served) == {"a": "stopped", "b": "ready", "c": "ready"}

    run(test())


def test_an_engine_that_answers_is_not_stopped_but_takes_no_more_when_its_memory_is_needed(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b"), needs=(1, 1), budget=1) as served:
            await served.ask("a")
            long = asyncio.create_task(served.stream("a", prompt="long", wait=0.3))
            await until(lambda: served.pool.slots["a"].active == 1)
            other = asyncio.create_task(served.ask("b", prompt="x"))
            await until(lambda: served.pool.slots["a"].state is State.STOPPING)
            late = asyncio.create_task(served.ask("a", prompt="late"))
            assert (await long).endswith(b"data: [DONE]\n\n"), "the stream was cut"
            assert (await other)[1]["model"] == "b"
            assert (await late)[1]["asked"]["prompt"] == "late"
            assert served.stubs.started == ["a", "b", "a"]

    run(test())


def test_a_model_that_never_fits_is_said_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b"), needs=(1, 9), budget=5) as served:
            status, said = await served.ask("b")
            assert status == 503 and "--memory" not in said["error"]["message"] and "takes" in said["error"]["message"]
            assert (await served.ask("a"))[0] == 200

    run(test())


def test_an_engine_that_is_killed_is_started_again_and_the_next_request_served(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            await served.ask()
            os.kill(served.pid(), signal.SIGKILL)
            status, said = await served.ask(prompt="next")
            assert (status, said["asked"]["prompt"]) == (200, "next")
            assert served.stubs.started == ["a", "a"] and served.pool.slots["a"].restarts == 1

    run(test())


def test_an_engine_that_dies_without_being_asked_again_is_started_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            await served.ask()
            os.kill(served.pid(), signal.SIGKILL)
            await until(lambda: served.stubs.started == ["a", "a"] and served.pool.slots["a"].state is State.READY)

    run(test())


def test_an_engine_whose_core_died_is_replaced_before_it_says_so_to_anybody(tmp_path: Path) -> None:
    """vLLM's server answers 500 for seconds after its engine has died, and /health then says 503."""

    async def test() -> None:
        async with endpoint(tmp_path) as served:
            status, said = await served.ask(prompt="x")
            assert status == 200
            status, said = await served.ask(prompt="broken")
            assert (status, said["error"]["code"]) == (503, "engine_lost")  # and so did its successor
            status, said = await served.ask(prompt="x")
            assert status == 200

    run(test())


def test_a_stream_that_is_cut_ends_with_an_error_and_no_torn_event(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            came = await served.stream(prompt="torn")
            events = came.decode().split("\n\n")
            assert [event[:15] for event in events[:2]] == ['data: {"prompt"'] * 2
            assert '"code": "engine_lost"' in events[2] and events[3:] == ["data: [DONE]", ""]
            assert (await served.ask(prompt="x"))[0] == 200

    run(test())


def test_deaths_one_after_another_are_waited_for_longer(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b"), refuse={"a": "no kernel for it"}) as served:
            waits = []
            for _ in range(4):
                slot = served.pool.slots["a"]
                slot.not_before = 0.0
                status, said = await served.ask("a")
                assert (status, said["error"]["message"]) == (503, "a: no kernel for it")
                waits.append(round(slot.not_before - time.monotonic()))
            assert waits == [1, 2, 4, 8]
            status, said = await served.ask("a")
            assert status == 503 and "is not running: no kernel for it" in said["error"]["message"]
            assert served.stubs.started == ["a"] * 4, "an engine was started before its time"
            assert (await served.ask("b"))[0] == 200
            async with served.client.get(f"{served.url}/ready") as answer:
                assert (answer.status, (await answer.json())["engines"]) == (200, {"a": "failed", "b": "ready"})

    run(test())


def test_a_client_that_goes_away_frees_its_place_within_a_second(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            await served.ask()
            body = {"model": "a", "stream": True, "n_events": 1000, "wait": 0.05}
            for _ in range(3):
                async with served.client.post(f"{served.url}/v1/completions", json=body) as answer:
                    await answer.content.readline()
                    answer.close()
            begun = time.monotonic()
            await until(lambda: served.pool.slots["a"].active == 0, 1)
            while (seen := (await served.ask(path="/v1/seen"))[1])["now"]:
                assert time.monotonic() - begun < 1
            assert seen["gone"] == 3

    run(test())


def test_two_hundred_streams_at_once_are_all_whole_and_not_mixed(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b")) as served:
            asked = [served.stream("ab"[number % 2], prompt=f"p{number}", wait=0.02) for number in range(200)]
            for number, came in enumerate(await asyncio.gather(*asked)):
                events = came.decode().split("\n\n")
                assert events[5:] == ["data: [DONE]", ""]
                assert all(f'"p{number}", "number": {index}' in events[index] for index in range(5))

    run(test())


def test_a_stop_waits_for_what_is_under_way_and_takes_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            await served.ask()
            gone = served.pid()
            under_way = asyncio.create_task(served.stream(prompt="x", wait=0.1))
            await until(lambda: served.pool.slots["a"].active == 1)
            closing = asyncio.create_task(served.pool.close(drain=20))
            await asyncio.sleep(0.05)
            status, said = await served.ask(prompt="y")
            assert (status, said["error"]["code"]) == (503, "shutting_down")
            async with served.client.get(f"{served.url}/ready") as answer:
                assert answer.status == 503
            async with served.client.get(f"{served.url}/health") as answer:
                assert answer.status == 200
            assert (await under_way).endswith(b"data: [DONE]\n\n")
            await closing
            assert not psutil.pid_exists(gone) and states(served) == {"a": "stopped"}

    run(test())


def test_a_stop_gives_up_a_start(tmp_path: Path) -> None:
    async def test() -> None:
        gate = threading.Event()
        async with endpoint(tmp_path, gate=gate) as served:
            waiting = asyncio.create_task(served.ask(prompt="x"))
            await until(lambda: served.stubs.started == ["a"])
            closing = asyncio.create_task(served.pool.close(drain=0))
            await asyncio.sleep(0.05)
            gate.set()
            assert (await waiting)[0] == 503
            await closing
            assert served.pool.slots["a"].engine is None

    run(test())


def test_an_engine_that_ends_because_all_is_stopped_has_not_died(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a",)) as served:
            await served.ask("a")
            slot = served.pool.slots["a"]
            served.pool.closing = True
            await served.pool.bury(slot)  # as whoever watches sees it
            assert (slot.state, slot.restarts, served.pool.failed) == (State.READY, 0, False)

    run(test())


def test_what_an_engine_takes_is_its_weights_its_kv_cache_and_its_runtime(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avx512 = True
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: avx512)
    weights = (pico_folder / "model.safetensors").stat().st_size
    own = offer.Offer("a", pico_folder, options=("--kv-cache-memory-bytes", "1000"))
    assert offer.memory_needed(own, "cpu") == offer.RUNTIME_BYTES + weights + 1000
    assert offer.memory_needed(offer.Offer("a", pico_folder), "cpu") > offer.memory_needed(own, "cpu")
    avx512 = False  # then it is computed in float32
    assert offer.memory_needed(own, "cpu") == offer.RUNTIME_BYTES + 2 * weights + 1000
    assert offer.budget("cpu", 10**10) == 10**10 - offer.FORK_SERVER_BYTES


def test_engines_on_one_gpu_share_it_where_their_weights_allow(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer, "gpu_bytes", lambda: 80 * 10**9)
    three = [offer.Offer(name, pico_folder) for name in "abc"]
    shared = offer.shared(three, "cuda")
    assert [one.options for one in shared] == [("--gpu-memory-utilization", "0.300")] * 3
    seven = offer.shared([offer.Offer(name, pico_folder) for name in "abcdefg"], "cuda")
    for some in (shared, seven):
        assert sum(offer.memory_needed(one, "cuda") for one in some) <= offer.budget("cuda")
    monkeypatch.setattr(offer, "gpu_bytes", lambda: 4 * (pico_folder / "model.safetensors").stat().st_size)
    assert [one.options for one in offer.shared(three, "cuda")] == [()] * 3, "each has all of it, one at a time"
    assert pool.State.READY == "ready"
