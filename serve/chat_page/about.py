"""What a server's list says of a model, as one line of the page, and what two answers have in common, in words.

Knows rows of `catalogue`. Texts from a server and from a model are escaped here.
"""

import html
from collections.abc import Sequence

from serve.catalogue import Listed


def facts(model: Listed, listed: Sequence[Listed]) -> list[str]:
    """Size and quality, as its report has them; for a base, that others are made from it."""
    said = []
    if model.bytes is not None:
        said.append(size(model.bytes))
    if model.disk_ratio:
        said.append(f"{smaller(model.disk_ratio)} than {model.parent or 'its base'}")
    elif model.parent:
        said.append(f"made from {model.parent}")
    if model.model_bits_per_weight is not None:
        said.append(f"{bits(model.model_bits_per_weight)} per weight")
    if model.mean_kl is not None:
        said.append(f"KL {nats(model.mean_kl)} per token")
    if model.perplexity_ratio is not None:
        said.append(f"perplexity {times(model.perplexity_ratio)}")
    if not said and any(other.parent == model.name for other in listed):
        said.append("the base that others here are made from")
    return said


def head(name: str | None, listed: Sequence[Listed], *, always: bool) -> str:
    """A model's name with the line, as HTML. Where nothing is known, the name only if it is `always` to be there."""
    known = next((facts(each, listed) for each in listed if each.name == name), [])
    if not name or not (known or always):
        return ""
    line = f"<span>{html.escape(' · '.join(known))}</span>" if known else ""
    return f"<b>{html.escape(name)}</b>{line}"


def in_common(names: Sequence[str], same: int, words: tuple[str | None, str | None], *, literally: bool) -> str:
    """Where two answers differ, as HTML. `literally`: they are the same to the last character."""
    if words == (None, None):
        how = "are the same" if literally else "have the same words, and differ in spaces or in marks such as bold"
        return f"<p>Both answers {how}.</p>"
    start = {0: "The answers differ from the first word on", 1: "After one word the answers differ"}.get(
        same, f"After {same} words the answers differ"
    )
    says = (f"{name} {f'says “{_short(word)}”' if word else 'ends'}" for name, word in zip(names, words, strict=True))
    line = f"{start}: {', '.join(says)}."
    return f"<p>{html.escape(line, quote=False)}</p>"


def _short(word: str) -> str:
    return word if len(word) <= 40 else f"{word[:39]}…"


def size(count: float) -> str:
    """Bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def smaller(ratio: float) -> str:
    """A size, as the ratio of the base's to it."""
    return f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"


def bits(count: float) -> str:
    """Bits of a weight."""
    return f"{count:.2f} bits"


def nats(divergence: float) -> str:
    """A divergence, per token."""
    return f"{divergence:.4g} nats"


def times(ratio: float) -> str:
    """A perplexity, as the ratio of it to the base's."""
    return f"x{ratio:.3f}"
