"""`hubplugin serve --ray` and `--print ray-serve`: Ray Serve LLM's engines get what the endpoint's own get."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_helpers
import httpx
import pytest
import yaml
from serve_helpers import DEMO

from hubplugin import cli
from hubplugin.errors import ServeError
from serve import ports, vllm_arguments, vllm_settings
from serve.deployments import engines, ray_serve
from serve.deployments.engines import Settings
from serve.endpoint import offer
from serve.endpoint.offer import Offer

HERE = Settings("127.0.0.1", 8000, replicas=3, drain=7.0)
ODD = 'a b: "c"'


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What vLLM's parser is asked to read, in place of which a stand-in says how many words they were."""
    words: list[list[str]] = []

    def keywords(given: list[list[str]]) -> list[dict[str, Any]]:
        words.extend(given)
        return [{"max_num_seqs": len(one)} for one in given]

    monkeypatch.setattr(vllm_arguments, "keywords", keywords)
    return words


def test_the_file_says_what_the_endpoints_engines_get(pico_folder: Path, asked: list[list[str]]) -> None:
    offers = [Offer("a/b", pico_folder, max_model_len=64, options=("--max-num-seqs", "9")), Offer(ODD, pico_folder)]
    found = yaml.safe_load(ray_serve.config(offers, "cpu", HERE))
    assert found["http_options"] == {"host": "127.0.0.1", "port": 8000}
    (application,) = found["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app" and application["route_prefix"] == "/"
    first, second = application["args"]["llm_configs"]
    own = vllm_settings.arguments("cpu", vllm_settings.read_config(pico_folder), 64)
    assert asked[0] == [*own, "--max-num-seqs", "9"]
    assert first["engine_kwargs"] == {"max_num_seqs": len(asked[0])}
    assert first["model_loading_config"] == {"model_id": "a/b", "model_source": str(pico_folder.resolve())}
    assert second["model_loading_config"]["model_id"] == ODD
    assert first["runtime_env"]["env_vars"].items() >= engines.environment("cpu").items()
    assert first["deployment_config"].items() >= {"num_replicas": 3, "graceful_shutdown_timeout_s": 7.0}.items()


def test_an_engine_takes_a_cpu_node_and_its_memory_and_on_gpus_what_ray_serve_gives_it(
    pico_folder: Path, asked: list[list[str]]
) -> None:
    one = Offer("a", pico_folder)
    settings = Settings("127.0.0.1", 8000, cpus=6)
    (model,) = ray_serve.arguments([one], "cpu", settings)["llm_configs"]
    assert model["placement_group_config"] == {"bundles": [{"CPU": 6}]}
    assert model["accelerator_config"] == {"kind": "cpu"}
    assert model["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "6"
    needed = offer.memory_needed(one, "cpu") + offer.FORK_SERVER_BYTES  # each imports vLLM for itself
    assert model["deployment_config"]["ray_actor_options"] == {"num_cpus": 0, "memory": needed}
    (model,) = ray_serve.arguments([one], "cuda", settings)["llm_configs"]
    assert not {"placement_group_config", "accelerator_config"} & model.keys()
    assert "ray_actor_options" not in model["deployment_config"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--replicas", "2"], "are for Ray Serve"),
        (["--print", "ray-serve", "--memory", "3"], "is of hubplugin's own endpoint"),
        (["--ray", "local", "--eager"], "is of hubplugin's own endpoint"),
        (["--ray", "local", "--max-tokens", "3"], "is of hubplugin's own endpoint"),
        (["--ray", "local", "--host", "0.0.0.0"], "makes ray-serve ask for a key"),
        (["--ray", "127.0.0.1:1"], "cannot be reached"),
    ],
)
def test_what_ray_serve_would_not_do_is_refused(
    pico_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", str(pico_folder), *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and what in said and "Traceback" not in said


def test_a_node_that_lacks_the_models_folder_is_named(pico_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubplugin.cluster import checks, serving
    from hubplugin.cluster.resources import Node
    from hubplugin.errors import ClusterError

    here = checks.Shared((), (str(pico_folder),)).seen()
    with pytest.raises(ClusterError, match="has no /") as caught:
        checks.compare("far", here, here | {"files": {str(pico_folder): None}})
    assert caught.value.where == "node far"
    node = Node("1", "far", cpus=4, gpus=0, memory=1)
    assert serving._fitting([node], "cpu") == [node]
    with pytest.raises(ClusterError, match="no node with a GPU"):
        serving._fitting([node], "cuda")


@pytest.mark.parametrize("gateway", [["--print", "vllm-router"], ["--print", "ray-serve"], ["--ray", "local"]])
def test_adapters_are_refused_where_they_would_not_be_found(
    tmp_path: Path, pico_folder: Path, capsys: pytest.CaptureFixture[str], gateway: list[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", str(pico_folder), "--lora", str(tmp_path), *gateway])
    assert ended.value.code == 2 and "would not find an adapter" in capsys.readouterr().err


class Busy:
    """Ray Serve where somebody serves already, or nobody does and engines do not start."""

    def __init__(self, *applications: str) -> None:
        self.applications = dict.fromkeys(applications)
        self.asked: list[str] = []

    def status(self) -> "Busy":
        return self

    def start(self, **options: Any) -> None:
        self.asked.append("start")

    def run(self, application: Any, **options: Any) -> None:
        raise RuntimeError("Deploying app failed:\nno memory")

    def shutdown(self) -> None:
        self.asked.append("shutdown")


def test_an_application_of_others_stays_and_one_that_does_not_start_is_taken_away() -> None:
    from hubplugin.cluster import serving
    from hubplugin.errors import ClusterError

    other, none = Busy("theirs"), Busy()
    for library, what in ((other, "serves theirs on this cluster already"), (none, "does not start the engines")):
        with pytest.raises(ClusterError, match=what), serving._application(library, dict, {"llm_configs": []}, HERE):
            raise AssertionError("it runs")
    assert other.asked == [] and none.asked == ["start", "shutdown"]


@pytest.mark.serve
@pytest.mark.timeout(300)
def test_vllms_own_parser_reads_the_options() -> None:
    words = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1k", "--no-enable-prefix-caching"]
    lora = ["--enable-lora", "--lora-modules", json.dumps({"name": "a", "path": "/a"})]
    found = vllm_arguments.keywords([words, lora, []])
    assert found[0] == {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1000,
        "enable_prefix_caching": False,
    }
    assert found[1]["enable_lora"] is True and found[2] == {}


def test_an_option_that_vllm_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = tmp_path / "python"
    parser.write_text("#!/bin/sh\necho noise; echo usage >&2; echo 'vLLM: error: unrecognized: --odd' >&2; exit 2\n")
    parser.chmod(0o755)
    monkeypatch.setattr(vllm_arguments.sys, "executable", str(parser))
    with pytest.raises(ServeError, match="are refused: vLLM: error: unrecognized: --odd"):
        vllm_arguments.keywords([["--odd"]])


@contextlib.contextmanager
def served(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The verb, and the URL that it prints."""
    command = [sys.executable, "-m", "hubplugin", "serve", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "RAY_DEDUP_LOGS": "0"})
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.serve
@pytest.mark.skipif(not os.environ.get("RAY_SERVE"), reason="takes three minutes on two cores: RAY_SERVE=1")
@pytest.mark.timeout(400)
def test_on_a_cluster_of_two_nodes_it_answers_and_leaves_nothing_behind() -> None:
    import openai
    import ray

    port = str(ports.choose(ports.LOOPBACK, None))
    with cluster_helpers.cluster(memory=4 * 10**9) as running:
        address = running.address
        with served(str(DEMO), "--ray", address, "--port", port, "--max-model-len", "256") as (process, url):
            assert url == f"http://127.0.0.1:{port}/v1", process.poll()
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            assert [model.id for model in client.models.list()] == [DEMO.name]
            question: Any = {"model": DEMO.name, "messages": [{"role": "user", "content": "What is a list?"}]}
            said = client.chat.completions.create(**question, max_tokens=8, temperature=0).choices[0].message.content
            parts = client.chat.completions.create(**question, max_tokens=8, temperature=0, stream=True)
            assert said and "".join(part.choices[0].delta.content or "" for part in parts) == said
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(**{**question, "model": "nobody"})
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert process.wait(90) == 0, time.monotonic() - begun
        with pytest.raises(httpx.HTTPError):
            httpx.get(url + "/models", timeout=5).raise_for_status()
        ray.init(address=address, logging_level="ERROR")
        try:
            from ray import serve

            assert not serve.status().applications
        finally:
            ray.shutdown()
