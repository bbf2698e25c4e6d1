"""Data of calibration, evaluation and recovery through `hubplugin run`: refused before any work, or reported."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
from calibration_helpers import jsonl
from prune_helpers import WIDE
from test_calibration_conversations import ASKED, NO_SYSTEM, dialogue

from hubplugin import cli, report
from hubplugin.compress.calibration import self_sampling
from hubplugin.evaluation.generation import Generated, generate_dequantized

MANIFEST = """\
model: base
calibrate: {calibrate}
variants:
  Recovered: [{{method: prune, ffn: 0.25}}, {{method: recover, blocks: 1, distill: 0, data: {data}}}]
evaluate: {{perplexity: {evaluate}}}
"""
SELF = "{self: true, samples: 4, sequence_length: 32, seed: SEED}"
OWN = {"calibrate": SELF.replace("SEED", "0"), "data": SELF.replace("SEED", "2"), "evaluate": SELF.replace("SEED", "1")}
SYSTEM = {"messages": [{"role": "system", "content": "Be brief."}, ASKED]}


def rows(name: str, **more: Any) -> str:
    return json.dumps({"files": [name], "samples": 4, "sequence_length": 32, **more})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A pico Llama whose template knows no system turn, and whose tokenizer knows 60 tokens that it does not."""
    folder = pico.write(tmp_path / "base", "llama", **WIDE)
    tokenizer = pico.tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.add_tokens([f"<extra {number}>" for number in range(88)])
    tokenizer.save_pretrained(folder)
    return folder


def run(tmp_path: Path, **sources: str) -> int:
    path = tmp_path / "pico.yaml"
    path.write_text(MANIFEST.format(**{**OWN, **sources}), encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        cli.main(["run", str(path), "--out", str(tmp_path / "out")])
    return int(done.value.code or 0)


@pytest.mark.parametrize("use", list(OWN))
@pytest.mark.parametrize(
    ("bad", "said"),
    [(SYSTEM, "System role not supported"), (dialogue("holds <extra 33>"), "'<extra 33>' has the id 293")],
)
def test_bad_data_is_refused_before_any_work(
    tmp_path: Path,
    base: Path,
    use: str,
    bad: Any,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(self_sampling, "sample_self", None)  # to sample would be work, and end in a TypeError
    name = jsonl(tmp_path, [*[dialogue("It is warm enough for a walk.")] * 5, bad])
    assert run(tmp_path, **{use: rows(name)}) == 2
    told = capsys.readouterr().err
    assert said in told and "row 6" in told and "fix:" in told and "Traceback" not in told
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_rows_left_out_of_each_source_are_in_report_and_card(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    monkeypatch.setattr("hubplugin.evaluation.engine_choice.generate", generate)
    good = [dialogue(f"It is {number} degrees.") for number in range(9)]
    names = {use: jsonl(tmp_path, [SYSTEM] * (index + 1) + good, f"{use}.jsonl") for index, use in enumerate(OWN)}
    assert run(tmp_path, **{use: rows(name, skip=7) for use, name in names.items()}) == 0
    told = capsys.readouterr().err
    assert "60 tokens beyond the 288 rows" in told and told.count("left out: ") == 3
    made = report.read(tmp_path / "out" / "Recovered")
    assert made.recovery and made.recovery.data and made.evaluation
    tokens = (made.calibration, made.recovery.data, made.evaluation.tokens)
    assert [each.skipped for each in tokens] == [1, 2, 3]
    card = (tmp_path / "out" / "Recovered" / "README.md").read_text(encoding="utf-8")
    for skipped in (1, 2, 3):
        assert f"{skipped} of {9 + skipped} rows left out, which could not be used" in card
