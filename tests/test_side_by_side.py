"""Variants that are compressed side by side: the base is walked once, and every byte is that of a variant alone."""

from collections.abc import Iterator
from pathlib import Path

import pico
import pytest
import torch
from interruption_helpers import stopped
from sharing_helpers import alone, planned, run, weights, write

from hubplugin import memory, report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import export, side_by_side, stages
from hubplugin.compress.blocks import blockwise
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.blocks.blockwise import VariantPass
from hubplugin.hub import snapshots
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner

INT4, INT8 = {"method": "gptq", "bits": 4, "group_size": 32}, {"method": "gptq", "bits": 8, "group_size": 32}
CODEBOOK, PRUNE = {"method": "codebook", "bits": 2}, {"method": "prune", "ffn": 0.25}
PRUNABLE = sorted(name for name in pico.BY_TYPE if families.FAMILIES[name].widths)


def passes(base: Path, *variants: list[dict[str, object]]) -> list[VariantPass]:
    """A pass for each list of steps, with a model of its own."""
    calibrate = {"self": True, "samples": 6, "tokens": 48}
    named = {f"V{number}": steps for number, steps in enumerate(variants)}
    manifest = Manifest.model_validate({"model": str(base), "calibrate": calibrate, "variants": named})
    document, peek = (
        Document(path=str(base / "m.yaml"), text="", sha256="", manifest=manifest),
        snapshots.peek(str(base), base),
    )
    row = families.match(peek.config, "x")
    return [
        VariantPass(Model(DenseView(base), peek.config, row), variant, torch.bfloat16)
        for variant in planner.make(document, peek.config, peek.tensors).variants
    ]


def same(ours: Block, alone: Block) -> bool:
    """Whether two blocks are equal in every bit, and in all that the report says of them but seconds."""
    timeless = [[line.model_copy(update={"seconds": 0.0}) for line in block.results] for block in (ours, alone)]
    return (
        timeless[0] == timeless[1]
        and _equal(ours.weights, alone.weights)
        and _equal(ours.biases, alone.biases)
        and _equal(ours.samples, alone.samples)
        and ours.encodings.keys() == alone.encodings.keys()
        and all(_equal(vars(ours.encodings[name]), vars(encoding)) for name, encoding in alone.encodings.items())
    )


def _equal(ours: dict[str, object], alone: dict[str, object]) -> bool:
    return ours.keys() == alone.keys() and all(
        torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value  # type: ignore[arg-type]
        for name, value in alone.items()
    )


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_blocks_are_those_of_each_variant_alone_and_the_base_is_walked_once(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, ids = pico.write(tmp_path / "m", model_type), pico.tokens(6, 48)
    variants = [[INT4], [INT8], *([[CODEBOOK], [PRUNE, INT4]] if model_type in PRUNABLE else [])]
    copies: list[int] = []
    real = Model.copy_block
    monkeypatch.setattr(Model, "copy_block", lambda model, index: copies.append(index) or real(model, index))
    together: dict[int, list[Block]] = {}
    for place, block in blockwise.side_by_side(passes(base, *variants), blockwise.Calibration(ids)):
        together.setdefault(place, []).append(block)
    assert copies == [0, 1]  # the base's blocks, for all variants
    for place, one in enumerate(passes(base, *variants)):
        blocks = list(blockwise.blocks(one.model, blockwise.Calibration(ids), one.plan, one.stored))
        pairs = list(zip(together[place], blocks, strict=True))
        assert len(pairs) == 2 and all(same(*pair) for pair in pairs), one.plan.name


def test_what_goes_into_the_bases_linears_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, forwards = pico.write(tmp_path / "m"), []
    variants = passes(base, [INT4], [INT8], [PRUNE, INT4])
    hooked: list[torch.nn.Module] = []  # held: the id of one that is gone may be that of the next
    real = blockwise.BaseWalk.block

    def watched(walk: blockwise.BaseWalk, model: Model, index: int) -> torch.nn.Module:
        block = real(walk, model, index)
        if all(block is not other for other in hooked):
            hooked.append(block)
            block.register_forward_pre_hook(lambda *_: forwards.append(index))
        return block

    monkeypatch.setattr(blockwise.BaseWalk, "block", watched)
    list(blockwise.side_by_side(variants, blockwise.Calibration(pico.tokens(6, 48))))
    alone = len(forwards)
    forwards.clear()
    (first, *_) = passes(base, [INT4])
    list(blockwise.blocks(first.model, blockwise.Calibration(pico.tokens(6, 48)), first.plan, first.stored))
    # the first group of the first block is not corrected by any of them
    assert alone == len(forwards) > 0


VARIANTS = {
    "Int4": [INT4],
    "Int8": [INT8],
    "No-QEP": [{**INT4, "qep": False}],
    "Pruned": [PRUNE],
    "Pruned-Int4": [PRUNE, INT4],
    "Mixed": [{"method": "gptq", "format": "compressed-tensors", "budget": {"bits_per_weight": 5.0}}],
    "Tuned": [INT4, {"method": "tune"}],
}
ORDER = ["Int4", "Int8", "Pruned", "Pruned-Int4", "Mixed"]  # of what is compressed side by side


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a base, texts and a manifest."""
    pico.write(tmp_path / "pico")
    write(tmp_path, VARIANTS, 4, perplexity_ratio=30)
    return tmp_path


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The variants that were compressed together, those of equal blocks by one name."""
    seen: list[list[str]] = []
    real = stages.compress

    def counted(base: Path, kinds: list[list[stages.Target]], *rest: object) -> object:
        if len(kinds) > 1 or len(kinds[0]) > 1:
            seen.append([kind[0].variant.name for kind in kinds])
        return real(base, kinds, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "compress", counted)
    yield seen


def test_a_manifest_is_made_in_one_walk_and_comes_out_as_one_variant_after_another(
    home: Path, together: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(home)
    assert together == [ORDER]
    said = capsys.readouterr().err
    assert "Int4, Tuned, Int8, Pruned, Pruned-Int4, Mixed | side by side" in said and "interrupted" not in said
    alone(home)
    assert together == [ORDER] and weights(home, "out") == weights(home, "alone")
    for one in made:
        single = report.read(home / "alone" / one.variant)
        assert [line.name for line in one.linears] == [line.name for line in single.linears]
        assert one.evaluation == single.evaluation and one.seconds["compress and export"] > 0


@pytest.mark.parametrize("blocks", [0, 1, 4, 8])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    blocks: int, home: Path, together: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped(blocks, export.Folder, "add", monkeypatch):
        run(home)
    names = [*ORDER, "Tuned"]
    counts = [len(list((home / "out" / f".{name}.part").rglob("block-*.safetensors"))) for name in names]
    assert sum(counts) == blocks and max(counts) - min(counts) <= 1
    run(home)
    alone(home)
    assert weights(home, "out") == weights(home, "alone")
    # Int4 and Tuned, which share their blocks, were through after eight
    assert [len(one) for one in together] == [5, 4 if blocks == 8 else 5]


def test_what_is_fitted_to_nothing_shares_its_blocks_with_what_is_trained_of_it_alone(
    home: Path, together: list[list[str]]
) -> None:
    plain, other = {**INT4, "qep": False}, {**INT8, "qep": False}
    write(
        home, {"Plain": [plain], "Plain-Tuned": [plain, {"method": "tune"}], "Other": [other]}, 4, perplexity_ratio=30
    )
    run(home)
    assert together == [["Plain"]]
    alone(home)
    assert weights(home, "out") == weights(home, "alone")


def test_where_memory_does_not_reach_they_are_made_in_parts_or_alone(
    home: Path,
    together: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drafts = {draft.name: draft.estimate for draft in planned(home)[1].drafts}
    monkeypatch.setattr(memory, "resident", lambda: 0)
    tokens = torch.zeros(4, 32, dtype=torch.int32)
    three = [drafts[name] for name in ORDER[:3]]
    monkeypatch.setattr(memory, "available", lambda: side_by_side._needed(home / "pico", three, tokens, "cpu"))
    run(home)
    assert together and all(len(names) <= 3 for names in together) and together[0] == ORDER[:3]
    together.clear()
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    capsys.readouterr()
    run(home, "each")
    assert together == [["Int4"]] and weights(home, "each") == weights(home, "out")  # once for what is trained of it
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Int4 | ")]
    assert "on disk" in said[0] and "block 01/2" in said[1]
