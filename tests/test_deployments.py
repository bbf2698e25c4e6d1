"""`hubplugin serve --print`: llama-swap and vllm-router are told the arguments that the endpoint's engines get."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubplugin import cli
from hubplugin.errors import ServeError
from serve import vllm_settings
from serve.deployments import engines, llama_swap, vllm_router
from serve.deployments.engines import Settings
from serve.endpoint import offer
from serve.endpoint.companions.adapters import Adapter
from serve.endpoint.companions.drafting import Draft
from serve.endpoint.offer import Offer

HERE = Settings("127.0.0.1", 8000)
ODD = "a b: 'c' \"d\" #é $1"  # what a shell, YAML and a URL each read in their own way


@pytest.fixture
def odd(tmp_path: Path, pico_folder: Path) -> Path:
    """A model in a folder of that name."""
    return Path(shutil.copytree(pico_folder, tmp_path / ODD))


def swapped(*offers: Offer, device: str = "cpu", settings: Settings = HERE) -> dict[str, Any]:
    """config.yaml as a reader of YAML has it."""
    found = yaml.safe_load(llama_swap.config(offers, device, settings))
    assert isinstance(found, dict)
    return found


def test_llama_swap_starts_what_the_endpoint_would_start(odd: Path, tmp_path: Path) -> None:
    draft = Draft("small", odd, 3)
    one = Offer("1e3", odd, {"bytes": 5, "mean_kl": 1e-5}, 64, ("--max-num-seqs", "9"), draft=draft)
    found = swapped(one, Offer(ODD, odd))
    model = found["models"]["1e3"]
    words = shlex.split(model["cmd"])
    own = vllm_settings.arguments("cpu", vllm_settings.read_config(odd), 64)
    place = ["--host", "127.0.0.1", "--port", "${PORT}"]
    assert words[1:3] == ["-m", "serve.vllm_process"]
    assert words[3:] == ["--model", str(odd), "--served-model-name", "1e3", *place, *own, *one.words]
    assert "--port ${PORT} " in model["cmd"] and model["proxy"] == "http://127.0.0.1:${PORT}"
    assert model["checkEndpoint"] == "/health" and model["ttl"] == 0 and model["concurrencyLimit"] > 10
    assert model["metadata"] == {"bytes": 5, "mean_kl": 1e-5, "max_model_len": 64}
    assert found["healthCheckTimeout"] == 900 and found["unloadTimeout"] == 30
    assert shlex.split(found["models"][ODD]["cmd"])[4:7] == [str(odd), "--served-model-name", ODD]
    assert '"1e3":' in llama_swap.config([one], "cpu", HERE), "which some readers of YAML take for a number"


def test_llama_swap_sends_adapters_to_their_base(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (model,) = swapped(Offer("a", odd, adapters=(Adapter(ODD, tmp_path),)))["models"].values()
    assert model["aliases"] == [ODD] and "useModelName" not in model, "which would replace the name"
    words = shlex.split(model["cmd"])
    assert json.loads(words[words.index("--lora-modules") + 1])["name"] == ODD


def test_the_environment_is_ours_where_the_user_sets_none(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret")
    text = llama_swap.config([Offer("a", odd)], "cpu", HERE)
    own = vllm_settings.own_environment("cpu", local=True, deadline=900)
    said = dict(line.split("=", 1) for line in yaml.safe_load(text)["models"]["a"]["env"])
    assert said == {**own, "VLLM_CPU_INT4_W4A8": "1"} and "sk-secret" not in text


def test_models_run_beside_each_other_where_they_fit_and_one_at_a_time_otherwise(odd: Path) -> None:
    offers = Offer("a", odd), Offer("b", odd)
    one = offer.memory_needed(offers[0], "cpu") + offer.FORK_SERVER_BYTES  # each imports vLLM for itself
    for memory, swap, preload in ((2 * one, False, ["a", "b"]), (2 * one - 1, True, ["a"])):
        found = swapped(*offers, settings=Settings("127.0.0.1", 8000, eager=True, memory=memory))
        (group,) = found["groups"].values()
        assert group == {"swap": swap, "exclusive": True, "members": ["a", "b"]}
        assert found["hooks"]["on_startup"]["preload"] == preload
    assert swapped(*offers)["hooks"]["on_startup"]["preload"] == ["a"], "as the endpoint starts the first"


def test_a_gpu_is_shared_as_the_endpoint_shares_it(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "gpu_bytes", lambda: 80 * 10**9)
    offers = Offer("a", odd), Offer("b", odd)
    words = shlex.split(swapped(*offers, device="cuda")["models"]["b"]["cmd"])
    assert words[:3] == ["vllm", "serve", str(odd)] and "--model" not in words
    assert words[words.index("--gpu-memory-utilization") + 1] == "0.450"
    assert vllm_router.commands(offers, "cuda", HERE).count("--gpu-memory-utilization 0.450") == 2


def test_what_llama_swap_would_fill_in_is_refused(odd: Path) -> None:
    with pytest.raises(ServeError, match="would fill in"):
        swapped(Offer("${PORT}", odd))
    with pytest.raises(ServeError, match="would fill in"):
        swapped(Offer("a", odd, options=("--chat-template", "${env.HOME}")))
    with pytest.raises(ServeError, match="ends a line"):
        swapped(Offer("a\n# b", odd))


def test_vllm_router_is_told_of_each_model_by_a_request(odd: Path) -> None:
    text = vllm_router.commands([Offer("a", odd), Offer(ODD, odd)], "cpu", HERE)
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    first, second, router, *known = lines
    for words, name, port in ((first, "a", "8001"), (second, ODD, "8002")):
        variables = [word for word in words[1:] if "=" in word and word.split("=")[0].isupper()]
        assert words[0] == "env" and variables == [f"{k}={v}" for k, v in engines.environment("cpu").items()]
        one = Offer(name, odd)
        assert words[1 + len(variables) :] == engines.command(one, "cpu", "127.0.0.1", port)
    assert "--enable-igw" in router and "--worker-urls" not in router, "which it ignores then"
    assert [json.loads(words[words.index("--json") + 1]) for words in known] == [
        {"url": "http://127.0.0.1:8001", "model_id": "a"},
        {"url": "http://127.0.0.1:8002", "model_id": ODD},
    ]
    assert {words[-1] for words in known} == {"http://127.0.0.1:8000/workers"}


def test_vllm_router_for_one_model_balances_its_replicas(odd: Path) -> None:
    *_, router = vllm_router.commands([Offer("a", odd)], "cpu", HERE).splitlines()
    words = shlex.split(router)
    assert words[words.index("--worker-urls") + 1 :] == ["http://127.0.0.1:8001"] and "--enable-igw" not in words


def test_vllm_router_needs_memory_and_ports_for_all(odd: Path) -> None:
    offers = Offer("a", odd), Offer("b", odd)
    with pytest.raises(ServeError, match="all engines run at once") as caught:
        vllm_router.commands(offers, "cpu", Settings("127.0.0.1", 8000, memory=1))
    assert "--print llama-swap" in caught.value.fix
    with pytest.raises(ServeError, match="65535 is the last"):
        vllm_router.commands(offers, "cpu", Settings("127.0.0.1", 65534))


def test_the_verb_prints_it_and_starts_nothing(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    words = ["serve", str(odd), "--port", "9000", "--print", "llama-swap", "--", "--max-num-seqs", "7"]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    text = capsys.readouterr().out
    assert not ended.value.code and text.startswith("# llama-swap --config config.yaml --listen 127.0.0.1:9000\n")
    assert shlex.split(yaml.safe_load(text)["models"][ODD]["cmd"])[-2:] == ["--max-num-seqs", "7"]


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["--keys", "{keys}"], "--keys", "is of hubplugin's own endpoint"),
        (["--max-body", "8"], "--max-body", "is of hubplugin's own endpoint"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0", "is not loopback"),
        (["--", "--trust-remote-code"], "--trust-remote-code", "code of the model's repo"),
    ],
)
def test_what_it_cannot_say_is_three_lines(
    words: list[str],
    where: str,
    what: str,
    odd: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "keys").write_text("sk\n")
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["serve", str(odd), "--print", "vllm-router", *(word.format(keys=tmp_path / "keys") for word in words)]
        )
    lines = capsys.readouterr().err.splitlines()[-3:]
    assert ended.value.code == 2 and [line.split(":")[0] for line in lines] == ["where", "what", "fix"], lines
    assert where in lines[0] and what in lines[1]
