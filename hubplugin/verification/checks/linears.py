"""Checks of what configurations, steps, names and tags say of the codes, against the shapes of the tensors."""

from collections import Counter
from collections.abc import Iterator, Mapping

from hubplugin.checkpoint.format_names import COMPRESSED_TENSORS, LOW_RANK
from hubplugin.evaluation.cards import steps
from hubplugin.manifest.methods import Kind
from hubplugin.plan import schemes
from hubplugin.verification import claims, stored_linears
from hubplugin.verification.configured import COMMON, Claimed
from hubplugin.verification.outcome import Finding, compared, failed, passed, unchecked
from hubplugin.verification.stored_linears import StoredLinear
from hubplugin.verification.subject import BESIDE, CONFIG, Subject


def known(subject: Subject) -> Iterator[Finding]:
    """Which tensors are in a format that is known here."""
    unknown = stored_linears.of_unknown_dtype(subject.reader)
    if unknown:
        dtype = subject.reader.headers[unknown[0]].dtype
        yield unchecked(f"{len(unknown)} tensors of unknown dtypes, first {unknown[0]}, which is {dtype}")


def configured(subject: Subject) -> Iterator[Finding]:
    """Bits and group size of every linear are those that config.json says."""
    config, quantized = subject.quantization, subject.quantized
    if config is None:
        if factored := [name for name, linear in subject.linears.items() if linear.rank]:
            yield failed(f"{CONFIG} says nothing of factors, and {len(factored)} linears are stored as factors")
        if quantized:
            yield failed(f"{CONFIG} says nothing of codes, and {len(quantized)} linears are stored as codes")
        return
    config.check_known()
    if config.ranks is not None:
        yield from _ranks(config.ranks, subject)
        config = config.codes
        if not config.entries and quantized:
            yield failed(f"{CONFIG} says nothing of codes, and {len(quantized)} linears are stored as codes")
        if not config.entries:
            return
    if config.where == BESIDE:
        yield unchecked(f"{CONFIG} says nothing, {BESIDE} does: vLLM reads it, transformers loads no codes then")
    if not quantized:
        yield failed(f"{config.where} says {config.method}, and no linear is stored as codes")
        return
    partly = bool(config.entries.get("modules_in_block_to_quantize"))
    wrong = 0
    for name, linear in subject.linears.items():
        claimed = config.of(name)
        if fault := _fault(claimed, linear, partly):
            wrong += 1
            yield compared(claimed or "dense", linear, name, fault, holds=False)
    if not wrong:
        counts = Counter(map(str, quantized)).most_common()
        yield passed("; ".join(f"{count} linears of {what}" for what, count in counts))


def _ranks(claimed: Mapping[str, int], subject: Subject) -> Iterator[Finding]:
    """Ranks as config.json has them, which vLLM's plugin makes room by."""
    stored = {name: linear.rank for name, linear in subject.linears.items() if linear.rank}
    wrong = [name for name in claimed.keys() | stored.keys() if claimed.get(name) != stored.get(name)]
    for name in sorted(wrong):
        yield compared(claimed.get(name, "no rank"), stored.get(name, "no factors"), name, "rank", holds=False)
    if not wrong and stored:
        yield passed(f"{len(stored)} linears are factors of ranks {min(stored.values())} to {max(stored.values())}")
    if not stored and not claimed:
        yield failed(f"{CONFIG} says {LOW_RANK}, and no linear is two factors")


def _fault(claimed: Claimed | None, linear: StoredLinear, partly: bool) -> str:
    """Why a claim does not hold; empty where it does. `partly`: linears may stay dense without a rule for them."""
    if claimed is None:
        return "is stored as codes" if linear.codes else ""
    if not linear.codes:
        return "" if partly else "is stored dense"
    if claimed.bits not in linear.bits:
        return "the width of its codes"
    return "" if linear.has_groups_of(claimed.group_size) else "the number of its scales"


def zero_points(subject: Subject) -> Iterator[Finding]:
    """compressed-tensors stores zero points exactly where grids are said to be asymmetric."""
    config = subject.quantization.codes if subject.quantization else None
    if config is None or config.method != COMPRESSED_TENSORS:
        return
    wrong = [
        linear.name
        for linear in subject.quantized
        if (claimed := config.of(linear.name)) and linear.zeros and claimed.symmetric
    ]
    wrong += [
        linear.name
        for linear in subject.quantized
        if (claimed := config.of(linear.name)) and not linear.zeros and not claimed.symmetric
    ]
    if wrong:
        yield failed(f"{len(wrong)} linears differ from what {config.where} says of symmetry, first {wrong[0]}")
    else:
        yield passed("stored where grids are asymmetric, and nowhere else")


def files_agree(subject: Subject) -> Iterator[Finding]:
    """quantize_config.json says what config.json says."""
    config, beside = subject.quantization, subject.beside
    if config is None or beside is None or config.where == beside.where:
        return
    keys = [key for key in COMMON if key in config.entries and key in beside.entries]
    differing = [key for key in keys if config.entries[key] != beside.entries[key]]
    for key in differing:
        yield compared(f"{config.entries[key]} in {config.where}", f"{beside.entries[key]} in {beside.where}", key)
    if not differing:
        yield passed(f"{len(keys)} keys are equal")


def as_in_steps(subject: Subject) -> Iterator[Finding]:
    """Format, bits and group size of the report's step are those of most linears."""
    step = steps.step_of(subject.report, Kind.QUANTIZE) if subject.report else None
    if step is None:
        return
    blocks = [subject.linears[name] for name in subject.block_linears if subject.linears[name].codes]
    if not blocks:
        yield failed(f"the report says {step['bits']} bits, and no linear is stored as codes")
        return
    usual = _usual(blocks)
    if step.get("format"):
        yield compared(step["format"], schemes.format_with(usual.layout), "format")
    yield compared(step["bits"], usual.bits[0], "bits", holds=step["bits"] in usual.bits)
    size = step.get("group_size", -1)
    found = size if usual.has_groups_of(size) else usual.group_size  # of a narrow linear -1 and its width are the same
    yield compared(size, found, "group size")


def in_words(subject: Subject) -> Iterator[Finding]:
    """Bits and group size that name and tags of a repo that is not ours say are those of most linears."""
    if subject.report:
        return
    quantized, name = subject.quantized, subject.files.name.rsplit("/", 1)[-1]
    places = (("name", (name,)), ("tags", subject.card.texts("tags")))
    for place, words in places:
        bits = set().union(*map(claims.bits_in, words)) if words else set()
        sizes = set().union(*map(claims.groups_in, words)) if words else set()
        if (bits or sizes) and not quantized:
            said = ", ".join(f"{number} bits" for number in sorted(bits)) or f"groups of {min(sizes)}"
            yield compared(said, "no linear is stored as codes", place, holds=False)
            continue
        if bits:
            usual = _usual(quantized)
            yield compared(_either(bits), usual.bits[0], f"bits by its {place}", holds=bool(bits & set(usual.bits)))
        if sizes:
            usual = _usual(quantized)
            holds = any(usual.has_groups_of(size) for size in sizes)
            yield compared(_either(sizes), usual.group_size, f"group size by its {place}", holds=holds)


def _usual(linears: list[StoredLinear]) -> StoredLinear:
    """One of the commonest kind."""
    kinds = Counter((linear.layout, linear.bits, linear.group_size) for linear in linears)
    usual = kinds.most_common(1)[0][0]
    return next(linear for linear in linears if (linear.layout, linear.bits, linear.group_size) == usual)


def _either(numbers: set[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
