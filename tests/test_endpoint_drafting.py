"""A variant drafts for its base: what vLLM is told, what is expected, what was measured, what is refused."""

import json
import shutil
from pathlib import Path

import card_helpers
import pico
import pytest
from endpoint_helpers import endpoint, run
from serve_helpers import until

from hubplugin import report
from hubplugin.errors import ServeError
from hubplugin.verbs import serving
from serve import engine, vllm_settings
from serve.endpoint import offer
from serve.endpoint.companions import drafting
from serve.endpoint.companions.drafting import Draft

METRICS = """\
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 40.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 25.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 9.0
"""


def test_what_is_expected_and_measured() -> None:
    draft = Draft("d", Path("/d"), 4, expected=0.5)
    assert draft.tokens_per_step(0.5) == 1 + 0.5 + 0.25 + 0.125 + 0.0625
    assert draft.tokens_per_step(1.0) == 5 and draft.tokens_per_step(0.0) == 1
    assert draft.facts() == {
        "model": "d",
        "tokens": 4,
        "expected_acceptance": 0.5,
        "expected_tokens_per_step": 1.9375,
    }
    assert draft.facts(METRICS).items() >= {"drafted": 40, "accepted": 25, "tokens_per_step": 3.5}.items()
    assert json.loads(draft.option.partition("=")[2]) == {
        "method": "draft_model",
        "model": "/d",
        "num_speculative_tokens": 4,
    }


def test_a_drafter_takes_memory_too(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: True)
    thin = pico.write(tmp_path / "thin", intermediate_size=96)
    alone, drafted = offer.Offer("a", pico_folder), offer.Offer("a", pico_folder, draft=Draft("d", thin, 4))
    weights = (thin / "model.safetensors").stat().st_size
    assert offer.memory_needed(drafted, "cpu") - offer.memory_needed(alone, "cpu") == weights + 32 * vllm_settings.MIB


def test_another_vocabulary_cannot_draft(pico_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(pico_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    drafting.check(Draft("d", pico_folder, 4), pico_folder, "cpu")
    with pytest.raises(ServeError, match="a vocabulary of 99 tokens"):
        drafting.check(Draft("d", other, 4), pico_folder, "cpu")


def test_a_variant_of_the_manifest_drafts_for_its_base(pico_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        f"model: {pico_folder}\ncalibrate: {{self: true}}\nvariants: {{V: [{{method: gptq}}]}}\n"
    )
    (tmp_path / "out" / "V").mkdir(parents=True)
    report.write(card_helpers.report(variant="V", model_name="base-V"), tmp_path / "out" / "V")
    targets, out = [str(tmp_path / "m.yaml")], tmp_path / "out"
    offers = serving._offers(targets, (), out, None, ())
    base, variant = serving._drafted(offers, "V", 3, targets, out)
    assert variant.draft is None and base.draft is not None
    assert (base.draft.name, base.draft.folder, base.draft.tokens) == ("base-V", out / "V", 3)
    assert base.draft.expected == variant.facts.get("acceptance_rate")
    assert base.words[0].startswith("--speculative-config=")
    with pytest.raises(ServeError, match="no such variant"):
        serving._drafted(offers, "W", 3, targets, out)
    with pytest.raises(ServeError, match="is the model that it would draft for"):
        serving._drafted(offers, str(pico_folder), 3, [str(pico_folder)], out)


def test_the_list_of_models_says_who_drafts(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path, draft=Draft("d", tmp_path, 4, expected=0.5)) as served:
            async with served.client.get(f"{served.url}/v1/models") as answer:
                (row,) = (await answer.json())["data"]
            assert row["draft"]["model"] == "d" and row["draft"]["expected_acceptance"] == 0.5

    run(test())


@pytest.mark.serve
def test_vllm_accepts_most_of_what_a_close_variant_drafts(tmp_path: Path) -> None:
    """The base drafts for itself: every draft is what it would say."""
    import httpx
    from serve_helpers import DEMO

    draft = Draft("itself", DEMO, 3)
    with engine.start(DEMO, name="demo", max_model_len=256, extra=(draft.option,)) as running:
        body = {"model": "demo", "prompt": "A list is", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        drafted = httpx.post(f"{running.url}/v1/completions", json=body, timeout=120).json()
        assert drafted["usage"]["completion_tokens"] == 40

        def measured() -> dict[str, float]:
            return draft.facts(httpx.get(f"{running.url}/metrics").text)

        until(lambda: "drafted" in measured(), 10)
        assert measured()["tokens_per_step"] > 3.5
