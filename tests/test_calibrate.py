"""Token sequences from files, datasets and the model itself: exact, seeded, hashed, and refused where too short."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from localhub_helpers import client
from transformers import AutoModelForCausalLM

from hubplugin.compress.calibration import calibration_data, self_sampling
from hubplugin.compress.calibration.calibration_data import TokenSequences
from hubplugin.compress.calibration.self_sampling import sample_self
from hubplugin.errors import CalibrationError
from hubplugin.localhub.server import start
from hubplugin.manifest.source import Source
from hubplugin.model.construction.tokenizer_files import read_tokenizer

EOS = 256  # of the pico tokenizer; its other ids are bytes
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau"


def source(**fields: Any) -> Source:
    return Source.model_validate({"samples": 3, "tokens": 16, **fields})


def make(folder: Path, shuffle: bool = True, tokenizer: Any = None, **fields: Any) -> TokenSequences:
    return calibration_data.tokens(source(**fields), tokenizer or pico.tokenizer(), folder, None, shuffle=shuffle)


def refused(folder: Path, **fields: Any) -> str:
    with pytest.raises(CalibrationError) as caught:
        make(folder, **fields)
    return caught.value.lines()


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def texts(folder: Path, count: int = 20) -> str:
    return jsonl(folder, [{"text": f"{number} " + WORDS} for number in range(count)])


def text_of(batch: TokenSequences) -> str:
    return str(pico.tokenizer().decode(batch.ids.flatten().tolist()))


# -- files


def test_sequences_have_exactly_the_asked_shape_and_a_hash_anyone_can_recompute(tmp_path: Path) -> None:
    batch = make(tmp_path, files=[texts(tmp_path)], samples=7, tokens=33, seed=4)
    assert batch.ids.shape == (7, 33) and batch.ids.dtype == torch.int32
    plain = b"".join(int(token).to_bytes(4, "little") for row in batch.ids for token in row)
    found = batch.description
    assert found.sha256 == hashlib.sha256(plain).hexdigest()
    assert (found.sequences, found.tokens_per_sequence, found.seed) == (7, 33, 4)
    assert "rows.jsonl" in found.source and (found.dataset, found.revision) == (None, None)


def test_the_seed_alone_decides_which_sequences_are_chosen(tmp_path: Path) -> None:
    name = texts(tmp_path, 60)
    first, again, other = (make(tmp_path, files=[name], seed=seed).ids for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_one_long_file_is_sampled_throughout_and_not_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("".join(f"{number:05d} " for number in range(3000)))
    rows = make(tmp_path, files=["long.md"], samples=8, tokens=60).ids
    starts = [int(pico.tokenizer().decode(row.tolist())[:5]) for row in rows]
    assert max(starts) - min(starts) > 1000 and starts != sorted(starts)


def test_documents_end_with_eos_and_nothing_else_is_added(tmp_path: Path) -> None:
    rows = [{"text": text} for text in (*["abc"] * 8, "  \n", "", None)]  # nothing stands for an empty document
    batch = make(tmp_path, files=[jsonl(tmp_path, rows)], samples=1, tokens=32)
    assert batch.ids.flatten().tolist() == (pico.tokenizer()("abc")["input_ids"] + [EOS]) * 8
    assert "EOS" in batch.description.source


def test_in_order_the_text_is_tokenized_as_one_and_the_first_windows_are_taken(tmp_path: Path) -> None:
    rows = [f" = Title {number} = \n" if number % 2 else "" for number in range(30)]
    name = jsonl(tmp_path, [{"text": row} for row in rows])
    batch = make(tmp_path, files=[name], shuffle=False)
    expected = pico.tokenizer()("\n\n".join(rows))["input_ids"][: 3 * 16]
    assert batch.ids.flatten().tolist() == expected
    assert "in order" in batch.description.source


def test_in_order_reads_on_until_the_tokens_suffice(tmp_path: Path) -> None:
    class Terse:
        """A tokenizer with a hundred characters to a token."""

        eos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(text[at]) for at in range(0, len(text), 100)]}

    (tmp_path / "a.txt").write_text("x" * 3000)
    (tmp_path / "b.txt").write_text("y" * 3000)
    batch = make(tmp_path, files=["a.txt", "b.txt"], shuffle=False, tokenizer=Terse())
    assert batch.ids.flatten().tolist() == [ord("x")] * 30 + [ord("\n")] + [ord("y")] * 17


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day to you"}]
    batch = make(tmp_path, files=[jsonl(tmp_path, [{"messages": talk}] * 9)], samples=1)
    ids = pico.tokenizer().apply_chat_template(talk, tokenize=True, return_dict=False)
    assert batch.ids.flatten().tolist() == (ids * 9)[:16]
    assert "chat template" in batch.description.source


def test_sharegpt_turns_mean_the_same(tmp_path: Path) -> None:
    modern = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day to you"}]
    older = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day to you"}]
    first = make(tmp_path, files=[jsonl(tmp_path, [{"messages": modern}] * 9)])
    second = make(tmp_path, files=[jsonl(tmp_path, [{"conversations": older}] * 9)])
    assert torch.equal(first.ids, second.ids)


def test_a_tokenizer_with_bos_begins_every_document_with_it(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = pico.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.convert_tokens_to_ids("<|system|>"))]
    )
    batch = make(tmp_path, files=[jsonl(tmp_path, [{"text": "abc"}] * 9)], samples=1, tokens=20, tokenizer=tokenizer)
    bos = tokenizer.convert_tokens_to_ids("<|system|>")
    assert batch.ids.flatten().tolist() == [bos, *pico.tokenizer()("abc")["input_ids"], EOS] * 4


@pytest.mark.parametrize("shuffle", [True, False])
def test_too_little_text_says_how_much_there_is_and_how_much_is_needed(tmp_path: Path, shuffle: bool) -> None:
    (tmp_path / "short.txt").write_text("x" * 47)
    said = refused(tmp_path, files=["short.txt"], samples=4, shuffle=shuffle)
    assert f"{47 + shuffle} tokens" in said and "64 are needed (4 sequences of 16)" in said
    assert f"samples: {(47 + shuffle) // 16}" in said


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    assert "0 tokens" in refused(tmp_path, files=["empty.jsonl"])


def test_ambiguous_and_unknown_columns_are_named(tmp_path: Path) -> None:
    row = {"text": "abc " * 40, "content": "xyz " * 40, "id": 1}
    name = jsonl(tmp_path, [row])
    assert "['text', 'content']" in refused(tmp_path, files=[name])
    assert "x" in text_of(make(tmp_path, files=[name], column="content"))
    assert "no column 'body'" in refused(tmp_path, files=[name], column="body")
    assert "is int" in refused(tmp_path, files=[name], column="id")
    assert "['article']" in refused(tmp_path, files=[jsonl(tmp_path, [{"article": "abc"}])])


def test_messages_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    tokenizer = pico.tokenizer()
    tokenizer.chat_template = None
    name = jsonl(tmp_path, [{"messages": [{"role": "user", "content": "hello"}]}])
    assert "no chat template" in refused(tmp_path, files=[name], tokenizer=tokenizer)


@pytest.mark.parametrize("turns", [["hello"], [{"text": "hello"}], [{"from": "human"}], [3]])
def test_rows_that_do_not_fit_the_template_are_named(tmp_path: Path, turns: list[Any]) -> None:
    tokenizer = pico.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    said = refused(tmp_path, files=[jsonl(tmp_path, [{"messages": turns}])], tokenizer=tokenizer)
    assert "row 1" in said and "does not fit the chat template" in said


def test_a_broken_line_is_found_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "broken.jsonl:2" in refused(tmp_path, files=["broken.jsonl"])
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n[1]\n')
    assert "broken.jsonl:2" in refused(tmp_path, files=["broken.jsonl"])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = refused(tmp_path, files=["nowhere.txt"])
    assert "nowhere.txt" in missing and "No such file" in missing and "Errno" not in missing
    assert ".parquet" in refused(tmp_path, files=["data.parquet"])
    (tmp_path / "latin.txt").write_bytes(b"\xe9" * 9)
    assert "latin.txt" in refused(tmp_path, files=["latin.txt"])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no tokenizer"):
        calibration_data.tokens(source(files=["x.txt"]), None, tmp_path, None)
    with pytest.raises(CalibrationError, match="tokenizer"):
        read_tokenizer(tmp_path)


# -- datasets


def test_a_dataset_is_streamed_from_a_hub_and_pinned_in_the_description(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"text": f"{split} {number} " + WORDS} for number in range(200)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "both.jsonl").write_text(json.dumps({"text": "a", "content": "b"}) + "\n")
    script = f"""
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import pico
    from hubplugin.compress.calibration import calibration_data
    from hubplugin.errors import CalibrationError
    from hubplugin.manifest.source import Source

    for name, files in (("words", ("train", "test")), ("both", ("both",))):
        api.create_repo(f"local/{{name}}", repo_type="dataset")
        for file in files:
            path = f"{{'train' if file == 'both' else file}}.jsonl"
            api.upload_file(path_or_fileobj=f"{{file}}.jsonl", path_in_repo=path, repo_id=f"local/{{name}}",
                            repo_type="dataset")

    def make(shuffle=True, **fields):
        source = Source.model_validate({{"samples": 3, "tokens": 16, **fields}})
        batch = calibration_data.tokens(source, pico.tokenizer(), Path(), None, shuffle=shuffle)
        return batch.description.model_dump() | {{"ids": batch.ids.flatten().tolist()}}

    def refused(**fields):
        try:
            make(**fields)
        except CalibrationError as error:
            return error.lines()

    print(json.dumps({{
        "sha": api.dataset_info("local/words").sha,
        "train": make(dataset="local/words"),
        "again": make(dataset="local/words"),
        "other": make(dataset="local/words", seed=1),
        "test": make(False, dataset="local/words", split="test"),
        "short": refused(dataset="local/words", samples=4000),
        "split": refused(dataset="local/words", split="nowhere"),
        "missing": refused(dataset="local/nowhere"),
        "ambiguous": refused(dataset="local/both"),
    }}))
    """
    with start(tmp_path / "hub") as hub:
        said = json.loads(client(hub, tmp_path, script).splitlines()[-1])
    assert said["train"] == said["again"] and said["train"]["ids"] != said["other"]["ids"]
    assert (said["train"]["dataset"], said["train"]["revision"]) == ("local/words", said["sha"])
    decoded = pico.tokenizer().decode(said["test"]["ids"])
    assert decoded.startswith("test 0 alpha") and "in order" in said["test"]["source"]
    assert "64000 are needed" in said["short"]
    assert "nowhere" in said["split"] and "cannot be read" in said["missing"]
    assert "['text', 'content']" in said["ambiguous"]


# -- the model's own samples


def test_self_asks_the_model_and_describes_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def sample(folder: Path, count: int, tokens: int, seed: int) -> torch.Tensor:
        assert folder == tmp_path / "base"
        asked.append((count, tokens, seed))
        return torch.arange(count * tokens).reshape(count, tokens)

    monkeypatch.setattr(self_sampling, "sample_self", sample)
    batch = calibration_data.tokens(source(self=True, seed=5), None, tmp_path, tmp_path / "base")
    assert asked == [(3, 16, 5)] and batch.ids.dtype == torch.int32
    assert "base model itself" in batch.description.source
    with pytest.raises(CalibrationError, match="no model"):
        calibration_data.tokens(source(self=True), None, tmp_path, None)


def test_samples_depend_on_the_seed_and_not_on_how_rows_are_shared_out(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_self(pico_folder, 5, 40, seed=3)
    assert whole.shape == (5, 40) and whole.dtype == torch.int32
    assert torch.equal(whole, sample_self(pico_folder, 5, 40, seed=3))
    assert not torch.equal(whole, sample_self(pico_folder, 5, 40, seed=4))
    assert len({tuple(row) for row in whole.tolist()}) == 5
    monkeypatch.setattr(self_sampling, "BATCH", 2)
    assert torch.equal(whole, sample_self(pico_folder, 5, 40, seed=3))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2"])
def test_every_sampled_token_is_where_its_draw_falls_in_the_models_own_distribution(
    tmp_path: Path, model_type: str
) -> None:
    """The buffered cache, also beyond a sliding window of 48, agrees with one forward over the whole row."""
    folder = pico.write(tmp_path / model_type, model_type)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    uniform = torch.rand(3, 80, dtype=torch.float64)
    ids = self_sampling._sample_rows(model, torch.tensor([1, 2, 3]), uniform).long()
    with torch.no_grad():
        cumulated = model(ids).logits[:, :-1].softmax(-1).cumsum(-1, dtype=torch.float64)  # [3, 79, vocabulary]
    above = cumulated.gather(-1, ids[:, 1:, None])[..., 0]
    below = torch.where(ids[:, 1:] > 0, cumulated.gather(-1, (ids[:, 1:, None] - 1).clamp(min=0))[..., 0], 0.0)
    draw = uniform[:, :-1] * cumulated[..., -1]
    assert ((below - 1e-5 <= draw) & (draw <= above + 1e-5)).all()
    assert ids[:, 0].tolist() == [1, 2, 3]


def test_rows_start_with_bos_where_there_is_one_and_else_with_ordinary_tokens(
    pico_folder: Path, tmp_path: Path
) -> None:
    starts = sample_self(pico_folder, 40, 2, seed=0)[:, 0]
    assert len(set(starts.tolist())) > 20 and int(starts.max()) < EOS
    folder = pico.write(tmp_path / "bos", bos_token_id=7)
    assert sample_self(folder, 4, 2, seed=0)[:, 0].tolist() == [7] * 4


def test_more_tokens_than_the_context_are_refused(pico_folder: Path) -> None:
    with pytest.raises(CalibrationError, match="context of 256"):
        sample_self(pico_folder, 1, 257, seed=0)
