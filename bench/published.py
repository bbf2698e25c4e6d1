"""Three variants of a model, published on a Hub, pulled back, looked at and verified; and copies that are not right.

    python bench/published.py BASE CALIBRATION HELD_OUT --out FOLDER [--windows 16] [--pictures docs]

BASE is a model folder, the others are text files. Does what a user would, by the same commands: upload the base and the
text, `run`, `publish`, `hf download`, `verify --quality`; the Hub is the embedded one. Beside perplexity and KL, cards
show a task of the manifest's own: which of four continuations of a paragraph is its own. Started again it goes on.
Prints a line for each thing that was looked at; ends with 1 where one is not as it should be.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import card_page
import yaml
from safetensors.torch import load_file, save_file

from hubplugin import localhub

USER = "local"
QUESTIONS, CONTEXT, ANSWER, CHOICES = 100, 24, 6, 4  # of the task; lengths in words
TASK = """\
task: continuation
dataset_path: json
dataset_kwargs: {data_files: {test: continuation.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
INT4 = {"method": "gptq", "bits": 4, "group_size": 64}
PRUNE = {"method": "prune", "ffn": 0.2}
VARIANTS = {
    "Int4": [INT4],
    "Pruned-FFN-20": [PRUNE],
    "Pruned-FFN-20-recovered-Int4": [PRUNE, {"method": "recover", "blocks": 0, "distill": 1}, INT4],
}


def main() -> None:
    """Make, publish, look, verify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16, help="To calibrate, and to evaluate.")
    parser.add_argument("--length", type=int, default=512, help="Tokens of each window.")
    parser.add_argument("--name", help="Of the base on the Hub; left out: its folder's.")
    parser.add_argument("--licence", default="apache-2.0", help="The base's, where its folder holds no card.")
    parser.add_argument("--pictures", type=Path, help="Where screenshots of the cards go.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with localhub.start(options.out / "hub", user=USER) as hub:
        home = (options.out / "hf-home").resolve()
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment = {**os.environ, **quiet, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home)}
        wrong = [line for line in looked_at(options, environment) if not line]
    raise SystemExit(min(len(wrong), 1))


def looked_at(options: argparse.Namespace, environment: dict[str, str]) -> Iterator[bool]:
    """Everything that is looked at, each with whether it is as it should be."""
    manifest, variants = options.out / "manifest.yaml", options.out / "variants"
    name = options.name or options.base.resolve().name
    _upload(options, name, environment)
    _write_task(options)
    manifest.write_text(yaml.safe_dump(_manifest(name, options), sort_keys=False), encoding="utf-8")
    _command(environment, "hubplugin", "run", manifest, "--out", variants)
    _command(environment, "hubplugin", "publish", manifest, "--out", variants)
    pulled = {}
    for variant in VARIANTS:
        repo = f"{USER}/{name}-{variant}"
        pulled[variant] = options.out / "pulled" / variant
        _command(environment, "hf", "download", repo, "--local-dir", pulled[variant])
        yield _said(f"{repo}: verify --quality", _verified(environment, repo, "--quality"), [])
    yield from _cards(pulled, options.pictures)
    for what, spoil, more in SPOILT:
        copy = options.out / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(pulled["Int4"], copy, ignore=shutil.ignore_patterns(".cache"))
        given = spoil(copy)
        failed = _verified(environment, copy, *more, *given)
        print(f"{what}: {'; '.join(failed) or 'NOT FOUND'}", flush=True)
        yield bool(failed)


def _upload(options: argparse.Namespace, name: str, environment: dict[str, str]) -> None:
    """The base, with a card, and both texts as the rows of a dataset: all on the Hub, as anybody's would be."""
    with TemporaryDirectory() as place:
        base, texts = Path(place, name), Path(place, "texts")
        shutil.copytree(options.base, base)
        if not (base / "README.md").is_file():
            (base / "README.md").write_text(f"---\nlicense: {options.licence}\nlanguage: en\n---\n", encoding="utf-8")
        texts.mkdir()
        for split, path in (("train", options.calibration), ("test", options.held_out)):
            rows = [json.dumps({"text": line}) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            (texts / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        _command(environment, "hf", "upload", f"{USER}/{name}", base)
        _command(environment, "hf", "upload", f"{USER}/texts", texts, "--repo-type", "dataset")


def _write_task(options: argparse.Namespace) -> None:
    """Paragraphs of the held-out text, and how they and three others go on at the same place."""
    text = options.held_out.read_text(encoding="utf-8")
    long = [words for line in text.split("\n") if len(words := line.split()) >= CONTEXT + ANSWER]
    rows = []
    for index, words in enumerate(long[:QUESTIONS]):
        ends = [long[(index + away) % len(long)][CONTEXT : CONTEXT + ANSWER] for away in range(CHOICES)]
        answer = index % CHOICES  # the right one stands at every place equally often
        ends.insert(answer, ends.pop(0))
        rows.append({"context": " ".join(words[:CONTEXT]), "choices": list(map(" ".join, ends)), "answer": answer})
    (options.out / "continuation.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    (options.out / "continuation.yaml").write_text(TASK, encoding="utf-8")


def _manifest(name: str, options: argparse.Namespace) -> dict[str, Any]:
    size = {"samples": options.windows, "sequence_length": options.length, "seed": 0}

    def text(split: str) -> dict[str, Any]:
        return {"dataset": f"{USER}/texts", "split": split, **size}

    return {
        "model": f"{USER}/{name}",
        "calibrate": text("train"),
        "variants": VARIANTS,
        "evaluate": {"perplexity": text("test"), "kl": True, "tasks": ["./continuation.yaml"]},
        "gate": {"perplexity_ratio": 1.5},
        "publish": {"repo": USER + "/{model}-{variant}", "private": False, "collection": f"{name}, compressed"},
    }


def _cards(pulled: dict[str, Path], pictures: Path | None) -> Iterator[bool]:
    """The cards, as they were pulled from the Hub, in a real browser."""
    from playwright.sync_api import sync_playwright

    path = next(found for name in CHROMIUM if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox"])
        for variant, folder in pulled.items():
            yield _said(f"{variant}: card in chromium", card_page.faults(browser, folder, pictures), [])
        browser.close()


def _verified(environment: dict[str, str], target: object, *options: object) -> list[str]:
    """The names of the lines that failed."""
    command = _words("hubplugin", "verify", target, "--json", *options)
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = json.loads(ran.stdout)["lines"]
    failed = [f"{line['check']} {line['what']}".strip() for line in lines if line["outcome"] == "failed"]
    assert ran.returncode == int(bool(failed))
    return failed


def _said(what: str, found: list[str], expected: list[str]) -> bool:
    print(f"{what}: {'; '.join(found) or 'as it should be'}", flush=True)
    return found == expected


def _figure(copy: Path) -> tuple[object, ...]:
    """A figure of the card: the perplexity, a tenth lower."""
    card = copy / "README.md"
    shown = f"{json.loads((copy / 'report.json').read_text())['evaluation']['variant']['perplexity']:.4g}"
    text = card.read_text(encoding="utf-8")
    assert shown in text
    card.write_text(text.replace(shown, f"{float(shown) * 0.9:.4g}"), encoding="utf-8")
    return ()


def _tensor(copy: Path) -> tuple[object, ...]:
    """One tensor: the codes of a linear turned around; the report is made to fit the file."""
    from hubplugin.disk import sha256

    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("down_proj.qweight"))
    tensors[name] = ~tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    report = json.loads((copy / "report.json").read_text(encoding="utf-8"))
    report["files"][path.name] = sha256(path)
    (copy / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return ()


def _file(copy: Path) -> tuple[object, ...]:
    (copy / "tokenizer.json").unlink()
    return ()


def _base(copy: Path) -> tuple[object, ...]:
    """Another base of the same shape: every weight a hundredth larger."""
    other = copy.parent / "other-base"
    repo = json.loads((copy / "report.json").read_text(encoding="utf-8"))["base"]["repo"].replace("/", "--")
    cached = next((copy.parent / "hf-home" / "hub" / f"models--{repo}" / "snapshots").iterdir())
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(cached, other)
    tensors = load_file(other / "model.safetensors")
    changed = {name: tensor * 1.01 for name, tensor in tensors.items()}
    (other / "model.safetensors").unlink()  # a link into the cache
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    return "--base", other


SPOILT: tuple[tuple[str, Callable[[Path], tuple[object, ...]], tuple[str, ...]], ...] = (
    ("a figure of the card edited", _figure, ()),
    ("one tensor changed, and the report with it", _tensor, ("--quality",)),
    ("a file missing", _file, ()),
    ("another base", _base, ()),
)


def _words(*arguments: object) -> list[str]:
    """The command with the `hubplugin` or `hf` of this Python."""
    program, *rest = map(str, arguments)
    if program == "hubplugin":
        return [sys.executable, "-m", "hubplugin", *rest]
    return [str(Path(sys.executable).parent / program), *rest]


def _command(environment: dict[str, str], *arguments: object) -> None:
    if status := subprocess.run(_words(*arguments), env=environment, check=False).returncode:
        raise SystemExit(status)  # what is wrong was said by the command


if __name__ == "__main__":
    main()
