"""Every code block of a card is run, in the environment it names, on a folder of each format that the engine writes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from card_helpers import report as any_report
from huggingface_hub import HfApi
from serve_helpers import skip_without_kernels
from snippet_helpers import answering, blocks, kind, missing, of_kind, run_client

from hubplugin import localhub, pipeline
from hubplugin.evaluation import quality_metrics
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish
from hubplugin.manifest.reading import loading
from hubplugin.manifest.schema import Document
from hubplugin.model import kl_divergence
from hubplugin.model.architectures import families
from hubplugin.plan import planner
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Load, PrunedBlock, Report, Shaping
from serve import ports, vllm_settings

FORMATS = {
    "Pruned": "{method: prune, ffn: 0.25}",
    "Masked": "{method: wanda, sparsity: 0.5}",
    "GPTQ": "{method: gptq, group_size: 32}",
    "GPTQ-8": "{method: gptq, bits: 8, group_size: 32}",
    "GPTQ-mixed": "{method: gptq, group_size: 32, format: gptq, ignore: [layers.0.mlp.down_proj]}",
    "Packed": "{method: gptq, group_size: 32, format: compressed-tensors}",
    "Packed-mixed": "{method: gptq, group_size: 32, overrides: {down_proj: {bits: 8}}, ignore: [layers.1.*.o_proj]}",
    "Packed-zeros": "{method: gptq, group_size: 32, symmetric: false}",
    "Packed-3": "{method: gptq, bits: 3, group_size: 32}",
    "Packed-2": "{method: gptq, bits: 2, group_size: 32}",
    "Budget": "{method: gptq, budget: {bits_per_weight: 5.2}}",
    "Int8": "{method: gptq, bits: 8, group_size: -1, activation_bits: 8}",
}
GPTQ = {"method": "gptq", "bits": 4, "group_size": 64, "format": "gptq"}
DIFFERENT = tuple(PrunedBlock(source=index, heads=4, kv_heads=2, ffn=64 + index) for index in range(2))


@dataclass
class Made:
    """Variants of all formats under the names of their repos, below `folder`."""

    folder: Path
    document: Document
    reports: dict[str, Report]
    plans: dict[str, VariantPlan]
    out: Path
    cards: dict[str, str] = field(default_factory=dict)


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("snippets")
    pico.write(folder / "pico")
    variants = "\n".join(f"  {name}: [{step}]" for name, step in FORMATS.items())
    text = "model: ./pico\ncalibrate: {self: true, samples: 4, sequence_length: 64}\n"
    text += f"variants:\n{variants}\npublish: {{repo: 'local/{{model}}-{{variant}}'}}\n"
    (folder / "m.yaml").write_text(text, encoding="utf-8")
    document = loading.load(folder / "m.yaml")
    peek = snapshots.peek(document.manifest.model, document.folder)
    plan, out = planner.make(document, peek.config, peek.tensors), folder / "out"
    reports = {each.variant: each for each in pipeline.run(document, plan, out, dequantized)}
    (folder / "local").mkdir()
    for name, each in reports.items():
        assert each.repo
        (folder / each.repo).symlink_to(out / name)
    cards = {name: (out / name / "README.md").read_text(encoding="utf-8") for name in reports}
    return Made(folder, document, reports, {one.name: one for one in plan.variants}, out, cards)


def test_every_block_of_every_card_is_run_by_a_test_here(made: Made) -> None:
    assert made.cards.keys() == FORMATS.keys()
    told = {name: [kind(block) for block in blocks(text)] for name, text in made.cards.items()}
    usual = ["serve on a GPU", "serve on a CPU", "curl", "openai", "pip", "load", "manifest", "make again"]
    for name in FORMATS:
        here = [each for each in usual if each != "serve on a CPU" or made.plans[name].verdicts[0].loads]
        assert told[name] == here, name
    assert sum("serve on a CPU" in kinds for kinds in told.values()) > 5
    heterogeneous = Shaping(predicted_kl=0.01, tokens=4096, removed=(), blocks=DIFFERENT)
    for other in (any_report(shaping=heterogeneous), any_report(files={}), any_report(repo=None)):
        assert {kind(block) for block in blocks(card.render(other))} <= set(usual)
    with pytest.raises(LookupError, match="no test runs"):
        [kind(block) for block in blocks(card.render(any_report()) + "\n```sh\nsglang serve x\n```\n")]
    with pytest.raises(LookupError, match="no test runs"):
        [kind(block) for block in blocks(card.render(any_report()) + "\n```python\nimport mlx_lm\n```\n")]


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_card_loads_in_python_is_the_model(
    name: str, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made.folder)
    known = loaded(made.cards[name])
    assert capsys.readouterr().out.strip()
    ids = pico.tokens(2, 24)
    with torch.inference_mode():
        theirs = known["model"](ids.long()).logits.float()
    ours = quality_metrics.open_model(made.out / name, families.FAMILIES["llama"])
    kl = kl_divergence.divergence(ours.logits(ours.hidden_states(ids)).flatten(0, 1), theirs.flatten(0, 1))
    assert float(kl.mean()) < 0.01  # computed in bfloat16


def loaded(text: str) -> dict[str, Any]:
    """What the block that loads a model leaves behind, run here; skips where the card asks for more than is here."""
    (pip,), (code,) = of_kind(text, "pip"), of_kind(text, "load")
    if lacking := missing(pip):
        pytest.skip(f"the card names {lacking}")
    known: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), known)
    return known


def test_a_folder_that_is_not_published_is_named_by_its_own_name(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = made.reports["Pruned"]
    alone = card.render(own.model_copy(update={"repo": None}))
    monkeypatch.chdir(made.out)
    for text in (alone, card.render(own.model_copy(update={"repo": None, "files": {}}))):
        assert loaded(text)["model"].config.intermediate_size == 96 and capsys.readouterr().out.strip()
    for way in ("serve on a GPU", "serve on a CPU"):
        assert of_kind(alone, way)[0].endswith(" serve Pruned")
    assert '"model": "Pruned"' in of_kind(alone, "curl")[0] and "folder above it" in alone


def test_what_is_on_a_branch_is_asked_for_there(
    made: Made, published: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = made.reports["Pruned"]
    text = card.render(own.model_copy(update={"branch": "aside"}))
    assert of_kind(text, "serve on a GPU") == ["vllm serve local/pico-Pruned --revision aside"]
    assert of_kind(text, "serve on a CPU") == ["hubplugin serve local/pico-Pruned@aside"]
    api = HfApi(endpoint=published["HF_ENDPOINT"], token=published["HF_TOKEN"])
    api.create_branch("local/pico-Pruned", branch="aside")
    (code,) = of_kind(text, "load")
    script = tmp_path / "load.py"
    script.write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, script], env=published, check=True, timeout=240)
    refs = Path(published["HF_HOME"]) / "hub" / "models--local--pico-Pruned" / "refs"
    assert (refs / "aside").is_file()
    local = card.render(own.model_copy(update={"branch": "aside", "repo": None}))
    assert "aside" not in local, "a folder has no branches"


def test_what_must_be_installed_is_read_from_the_card() -> None:
    assert missing("pip install torch 'transformers>=5'") == ""
    assert missing("pip install torch 'transformers<5'").startswith("transformers<5, and 5.")
    assert missing("pip install torch no-such-package-here") == "no-such-package-here, which is not installed"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("client", ["curl", "openai"])
def test_a_client_of_the_card_asks_as_the_server_understands(name: str, client: str, made: Made) -> None:
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    if client == "openai":
        pytest.importorskip("openai")
        if name not in ("Pruned", "Int8"):
            assert of_kind(made.cards[name], client)[0].replace(name, "Int8") == of_kind(made.cards["Int8"], client)[0]
            return
    (code,) = of_kind(made.cards[name], client)
    with answering() as server:
        assert "pong" in run_client(code, server.server_address[1])
    ((path, content_type, asked),) = server.asked
    assert (path, content_type) == ("/v1/chat/completions", "application/json")
    assert asked["model"] == f"local/pico-{name}" and asked["messages"][0]["role"] == "user"


@pytest.mark.parametrize("client", ["curl", "openai"])
def test_a_model_without_a_chat_template_is_asked_to_go_on_from_a_prompt(client: str) -> None:
    pytest.importorskip("openai")
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    text = card.render(any_report(files={}))
    with answering() as server:
        assert "pong" in run_client(of_kind(text, client)[0], server.server_address[1])
    ((path, _, asked),) = server.asked
    assert path == "/v1/completions" and asked["prompt"] and asked["model"] == "ns/base-Pruned-25-Int4"
    assert "apply_chat_template" not in text


@pytest.mark.parametrize("name", FORMATS)
def test_the_manifest_of_a_card_is_a_manifest(name: str, made: Made, tmp_path: Path) -> None:
    (text,) = of_kind(made.cards[name], "manifest")
    (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
    assert loading.load(tmp_path / "m.yaml").manifest == made.document.manifest


def test_the_card_says_how_the_model_is_made_again(made: Made, tmp_path: Path) -> None:
    name = "GPTQ-8"  # which no engine on a CPU is started for
    (tmp_path / "pico").symlink_to(made.folder / "pico")
    shutil.copy(made.out / name / "manifest.yaml", tmp_path)
    verb, *words = shlex.split(of_kind(made.cards[name], "make again")[0])
    assert verb == "hubplugin"
    done = subprocess.run(
        [sys.executable, "-m", "hubplugin", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (again,) = (tmp_path / "out").glob("manifest/*")
    assert again.name == name
    for file in ("model.safetensors", "config.json", "quantize_config.json", "tokenizer.json"):
        assert (again / file).read_bytes() == (made.out / name / file).read_bytes(), file


def test_what_loads_nowhere_else_is_not_promised(made: Made) -> None:
    mixed, plain, zeros, three = (made.cards[name] for name in ("GPTQ-mixed", "GPTQ", "Packed-zeros", "Packed-3"))
    assert "GPTQModel.load" in of_kind(mixed, "load")[0] and "AutoModelForCausalLM" not in mixed
    assert of_kind(mixed, "pip") == ["pip install gptqmodel"]
    assert of_kind(plain, "pip") == ["pip install torch transformers gptqmodel optimum"]
    assert of_kind(zeros, "pip") == ["pip install torch 'transformers<5.23' compressed-tensors"]
    assert of_kind(three, "pip") == ["pip install torch transformers 'compressed-tensors>=0.18'"]
    assert "5.23 and 5.24" in zeros and "5.22 and older" in zeros and "llama.cpp" in three
    for name in ("Packed-mixed", "Budget"):
        assert made.cards[name].count("compressed-tensors' format") == 1 and "gptqmodel" not in made.cards[name]
    whole = made.reports["GPTQ"]
    (step,) = whole.steps
    experts = {"base": whole.base.model_copy(update={"model_type": "mixtral"})}
    for change in ({"steps": ({**step, "lm_head": True},)}, experts):
        other = card.render(whole.model_copy(update=change))
        assert of_kind(other, "pip") == ["pip install gptqmodel"] and "AutoModelForCausalLM" not in other
    refused = tuple(Load(target=one.target, loads=one.target != "cpu", why="x") for one in made.reports["GPTQ"].loads)
    elsewhere = card.render(made.reports["GPTQ"].model_copy(update={"loads": refused}))
    assert "hubplugin serve" not in elsewhere and "vllm serve" in elsewhere
    blocks_differ = Shaping(predicted_kl=0.01, tokens=4096, removed=(), blocks=DIFFERENT)
    uneven = card.render(any_report(steps=({"method": "prune", "ratio": 0.2}, GPTQ), shaping=blocks_differ))
    assert "from_pretrained" not in uneven and "pip install" not in uneven and "transformers," not in uneven


@pytest.fixture(scope="module")
def published(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which the cards' repos are on an embedded Hub."""
    home = tmp_path_factory.mktemp("hub")
    with localhub.start(home / "hub") as running, pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_ENDPOINT", running.url)
        patched.setenv("HF_TOKEN", running.token)
        patched.setenv("HF_HOME", str(home / "hf"))
        publish.publish(made.document, made.out)
        yield dict(os.environ)


@pytest.mark.serve
@pytest.mark.parametrize(
    "where", ["serve on a CPU", pytest.param("serve on a GPU", marks=pytest.mark.gpu, id="serve on a GPU")]
)
@pytest.mark.parametrize("name", FORMATS)
def test_vllm_serves_as_the_card_says_and_its_clients_are_answered(
    name: str, where: str, made: Made, published: dict[str, str], tmp_path: Path
) -> None:
    found = of_kind(made.cards[name], where)
    if where == "serve on a CPU":
        if not found:
            pytest.skip(made.plans[name].verdicts[0].why)
        skip_without_kernels(made.plans[name])
    elif vllm_settings.find_device() != "cuda" or shutil.which("vllm") is None:
        pytest.skip("no GPU with vLLM on this machine")
    port = ports.choose("127.0.0.1", None)
    program, *words = shlex.split(found[0])
    start = [sys.executable, "-m", program] if program == "hubplugin" else [program]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*start, *words, "--port", str(port)], cwd=tmp_path, env=published, stdout=log, stderr=log
        )
    try:
        _wait_for(server, port, tmp_path / "log")
        for client in ("curl", "openai"):
            (code,) = of_kind(made.cards[name], client)
            said = run_client(code, port)
            assert said.strip() and (client == "openai" or json.loads(said)["choices"])
    finally:
        server.terminate()
        server.wait(60)


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import urllib.error
    import urllib.request

    from serve_helpers import until

    def healthy() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    until(healthy, 240)
