"""LoRA adapters behind the endpoint: names of their own, one engine, what vLLM is told, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import adapter_helpers
import pytest
from endpoint_helpers import endpoint, run
from huggingface_hub import HfApi, constants

from hubplugin import cli
from hubplugin.errors import HubError, ServeError
from hubplugin.hub import adapters as found
from hubplugin.verbs import serving
from serve import vllm_options, vllm_settings
from serve.endpoint import offer
from serve.endpoint.companions import adapters
from serve.endpoint.companions.adapters import Adapter
from serve.endpoint.offer import Offer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    """An adapter of the pico model. Read-only."""
    return adapter_helpers.write(tmp_path_factory.mktemp("adapters") / "adapter", pico_folder)


def changed(saved: Path, folder: Path, **config: Any) -> Adapter:
    """A copy whose adapter_config.json says something else."""
    shutil.copytree(saved, folder)
    file = folder / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return Adapter("changed", folder)


def test_an_adapter_is_a_model_of_its_own_and_asks_the_engine_of_its_base(tmp_path: Path, saved: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b"), adapters={"b": (Adapter("c/d", saved),)}) as served:
            async with served.client.get(f"{served.url}/v1/models") as answer:
                rows = (await answer.json())["data"]
            assert [row["id"] for row in rows] == ["a", "b", "c/d"]
            size = (saved / adapters.WEIGHTS).stat().st_size
            assert rows[2].items() >= {"adapter_of": "b", "rank": 4, "adapter_bytes": size, "state": "stopped"}.items()
            async with served.client.get(f"{served.url}/v1/models/c/d") as answer:
                assert await answer.json() == rows[2]
            status, said = await served.ask("c/d", prompt="x")
            assert status == 200 and said["asked"]["model"] == "c/d" and said["model"] == "b"
            assert served.stubs.started == ["b"] and served.log[-1]["model"] == "c/d"
            status, said = await served.ask("nobody", prompt="x")
            assert status == 404 and "a, b, c/d" in said["error"]["message"]
            async with served.client.get(f"{served.url}/metrics") as answer:
                assert 'variant="c/d"' in await answer.text()

    run(test())


def test_where_one_model_has_an_adapter_requests_without_a_name_are_for_the_model(tmp_path: Path, saved: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, adapters={"a": (Adapter("d", saved),)}) as served:
            status, said = await served.ask(None, prompt="x")
            assert status == 200 and "model" not in said["asked"]

    run(test())


def test_an_engine_with_adapters_is_not_asked_to_score_a_prompt(saved: Path, tmp_path: Path) -> None:
    """vLLM 0.32 ends where two such requests come at once."""

    async def test() -> None:
        async with endpoint(tmp_path, ("a", "b"), adapters={"b": (Adapter("d", saved),)}) as served:
            for model in ("b", "d"):
                for asked in ({"prompt_logprobs": 0}, {"echo": True, "logprobs": 0}, {"echo": True, "top_logprobs": 2}):
                    status, said = await served.ask(model=model, prompt="x", **asked)
                    assert (status, said["error"]["param"]) == (400, "prompt_logprobs")
                for asked in ({"logprobs": 2}, {"echo": True}, {"prompt_logprobs": None}):
                    assert (await served.ask(model=model, prompt="x", **asked))[0] == 200
            assert (await served.ask(model="a", prompt="x", prompt_logprobs=2))[0] == 200

    run(test())


def test_vllm_is_told_of_all_adapters_of_a_base(saved: Path, pico_folder: Path, tmp_path: Path) -> None:
    wide = changed(saved, tmp_path / "wide", r=9, rank_pattern={"q_proj": 17})
    one = Offer("base", pico_folder, adapters=(Adapter("a b", saved), wide), options=("--max-loras", "1"))
    words = list(one.words)
    at = words.index("--lora-modules")
    told = [json.loads(word) for word in words[at + 1 : at + 3]]
    assert told == [
        {"name": "a b", "path": str(saved), "base_model_name": "base"},
        {"name": "changed", "path": str(wide.folder), "base_model_name": "base"},
    ]
    assert words[:5] == ["--enable-lora", "--max-lora-rank", "32", "--max-loras", "2"]
    assert vllm_options.value_of(words, "--max-loras") == "1", "the user's option counts"
    assert "--enable-lora" not in Offer("base", pico_folder).words


def test_adapters_take_memory(saved: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: True)
    config = json.loads((pico_folder / "config.json").read_text())
    more = offer.memory_needed(Offer("a", pico_folder, adapters=(Adapter("b", saved),)), "cpu")
    widths = 8 * config["hidden_size"] + 3 * (config["hidden_size"] + config["intermediate_size"])
    # rank 4 gets the room of rank 8, two bytes per number
    assert more - offer.memory_needed(Offer("a", pico_folder), "cpu") == config["num_hidden_layers"] * widths * 8 * 2


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"peft_type": "IA3"}, "is of type IA3"),
        ({"use_dora": True}, "holds DoRA"),
        ({"modules_to_save": ["lm_head"]}, "holds whole modules"),
        ({"bias": "lora_only"}, "holds biases"),
        ({"lora_bias": True}, "holds biases"),
        ({"layer_replication": [[0, 1]]}, "holds repeated layers"),
        ({"r": 600}, "has rank 600"),
        ({"r": 0}, "has rank 0"),
    ],
)
def test_what_vllm_does_not_compute_is_refused(
    saved: Path, tmp_path: Path, pico_folder: Path, config: dict[str, Any], what: str
) -> None:
    with pytest.raises(ServeError, match=what):
        offer.check([Offer("a", pico_folder, adapters=(changed(saved, tmp_path / "a", **config),))], "cpu")


def test_names_are_used_once_and_weights_are_safetensors(saved: Path, tmp_path: Path, pico_folder: Path) -> None:
    with pytest.raises(ServeError, match="name of two models"):
        offer.check([Offer("a", pico_folder, adapters=(Adapter("a", saved),))], "cpu")
    other = changed(saved, tmp_path / "pickled")
    (other.folder / adapters.WEIGHTS).rename(other.folder / "adapter_model.bin")
    with pytest.raises(ServeError, match=r"holds no adapter_model\.safetensors"):
        offer.check([Offer("a", pico_folder, adapters=(other,))], "cpu")
    (other.folder / adapters.CONFIG).write_text("[]")
    with pytest.raises(ServeError, match="holds no JSON object"):
        offer.check([Offer("a", pico_folder, adapters=(Adapter("b", other.folder),))], "cpu")


def test_an_adapter_goes_to_the_base_that_it_names(
    saved: Path, tmp_path: Path, pico_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offers = [Offer("a/b", tmp_path), Offer("c", pico_folder)]
    by_folder = serving._adapted(offers, [str(saved)])
    assert [len(one.adapters) for one in by_folder] == [0, 1]
    named = changed(saved, tmp_path / "named", base_model_name_or_path="a/b").folder
    both = serving._adapted(by_folder, [str(named)])
    assert [[adapter.name for adapter in one.adapters] for one in both] == [["named"], ["adapter"]]
    alone = serving._adapted([Offer("c", pico_folder)], [str(named)])
    assert len(alone[0].adapters) == 1 and "its base is a/b" in capsys.readouterr().err
    with pytest.raises(ServeError, match="was trained on a/b"):
        serving._adapted([Offer("c", pico_folder), Offer("d", pico_folder)], [str(named)])


def test_adapters_are_pulled_and_nothing_else_of_their_repo(hub: HfApi, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "adapter")
    (folder / "optimizer.pt").write_bytes(b"0" * 1000)
    (folder / "README.md").unlink()  # its base_model is a folder, which the Hub refuses
    hub.create_repo("local/adapter")
    hub.upload_folder(repo_id="local/adapter", folder_path=folder)
    pulled = found.find("local/adapter")
    assert pulled.name == "local/adapter" and pulled.rank == 4
    assert sorted(file.name for file in pulled.folder.iterdir()) == [adapters.CONFIG, adapters.WEIGHTS]
    assert found.find("local/adapter@main").folder == pulled.folder
    with pytest.raises(ServeError, match=r"holds no adapter_config\.json"):
        found.find("local/pico")
    with pytest.raises(HubError):
        found.find("local/nothing")


def test_what_was_pulled_is_found_again_without_the_hub(
    hub: HfApi, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(saved, tmp_path / "adapter", ignore=lambda place, names: ["README.md"])
    hub.create_repo("local/adapter")
    hub.upload_folder(repo_id="local/adapter", folder_path=folder)
    pulled = found.find("local/adapter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert found.find("local/adapter").folder == pulled.folder


def test_the_command_line_says_what_is_wrong(pico_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", str(pico_folder), "--lora", str(pico_folder)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "holds no adapter_config.json" in said and "PEFT" in said
