"""SliceGPT: the residual stream is rotated onto its principal components and the smallest are cut off (2401.15024).

Every block of attention and FFN reads and writes in a basis of its own, found from the calibration tokens as they come
through what is already sliced; a matrix on each residual connection leads from one basis to the next. Norms lose their
weights to the linears behind them. Embedding and head end up untied, for their bases differ. The stream before the head
is not sliced, as in the paper's setting. The matrices are weights that are stored and multiplied: they are counted,
beside the linears or, where asked, among them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pruning_rivals.calibration import ROWS, Calibration
from pruning_rivals.parts import Shape

SIGNALS = ("normalised", "raw")  # what principal components are taken of: the norm's output, or its input


class Rms(nn.Module):
    """RMSNorm without weights whose mean goes over the dense width: rotation leaves the sum of squares alone."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width, self.epsilon = width, epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.rsqrt(hidden.square().sum(-1, keepdim=True) / self.width + self.epsilon)


class SlicedLayer(nn.Module):
    """A layer between three bases: of its attention, of its FFN, of what comes next."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, norm: Rms, to_mlp: Tensor, to_next: Tensor) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm = attention, mlp, norm
        self.to_mlp = nn.Parameter(to_mlp, requires_grad=False)
        self.to_next = nn.Parameter(to_next, requires_grad=False)

    def forward(self, hidden: Tensor, **keywords: Any) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.norm(hidden), **keywords)
        hidden = hidden @ self.to_mlp + attended
        return hidden @ self.to_next + self.mlp(self.norm(hidden))


@torch.inference_mode()
def prune(
    model: nn.Module, calibration: Calibration, keep: int, signal: str = "normalised", count_rotations: bool = False
) -> None:
    """Slice the residual stream to the smallest width that leaves `keep` weights."""
    width = sliced_width(Shape.of(model), keep, count_rotations)
    norm = Rms(model.config.hidden_size, model.config.rms_norm_eps)
    _fold(model)
    trunk = model.model
    embedding = trunk.embed_tokens.weight
    streams = [nn.functional.embedding(ids, embedding) for ids in calibration.ids.split(ROWS)]
    positions = torch.arange(calibration.ids.shape[1])[None]
    rotary = trunk.rotary_emb(streams[0], positions)
    basis = _components(streams, norm, signal, width)
    trunk.embed_tokens = nn.Embedding.from_pretrained(embedding @ basis)
    streams = [stream @ basis for stream in streams]
    for index, layer in enumerate(trunk.layers):
        attention, mlp = layer.self_attn, layer.mlp
        _read(basis, attention.q_proj, attention.k_proj, attention.v_proj)
        for number, stream in enumerate(streams):
            attended, _ = attention(hidden_states=norm(stream), position_embeddings=rotary, attention_mask=None)
            streams[number] = stream @ basis.T + attended
        inner = _components(streams, norm, signal, width)
        _write(inner, attention.o_proj)
        streams = [stream @ inner for stream in streams]
        _read(inner, mlp.gate_proj, mlp.up_proj)
        streams = [stream @ inner.T + mlp(norm(stream)) for stream in streams]
        last = index + 1 == len(trunk.layers)
        after = _components(streams, norm, signal, model.config.hidden_size if last else width)
        _write(after, mlp.down_proj)
        trunk.layers[index] = SlicedLayer(attention, mlp, norm, basis.T @ inner, inner.T @ after)
        streams, basis = [stream @ after for stream in streams], after
    trunk.norm = norm
    _read(basis, model.lm_head)


def sliced_width(shape: Shape, keep: int, count_rotations: bool) -> int:
    """The smallest width of the stream that leaves `keep` weights; never more than the dense one."""
    return next(
        width
        for width in range(1, shape.hidden + 1)
        if width == shape.hidden or _left(shape, width, count_rotations) >= keep
    )


def _left(shape: Shape, width: int, count_rotations: bool) -> int:
    linears = shape.all // shape.hidden * width + shape.ffn * (shape.hidden - width)  # the last down writes full width
    rotations = (2 * shape.layers - 1) * width**2 + width * shape.hidden
    return linears + (rotations if count_rotations else 0)


def _fold(model: nn.Module) -> None:
    """Move the weights of norms into the linears behind them, and part the head from the embedding."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            _set(linear, linear.weight * layer.input_layernorm.weight)
        for linear in (mlp.gate_proj, mlp.up_proj):
            _set(linear, linear.weight * layer.post_attention_layernorm.weight)
    _set(model.lm_head, model.lm_head.weight * model.model.norm.weight)


def _components(streams: list[Tensor], norm: Rms, signal: str, width: int) -> Tensor:
    """An orthonormal basis [hidden, width] of the largest principal components, uncentred as in the paper."""
    hidden = streams[0].shape[-1]
    moments = torch.zeros(hidden, hidden, dtype=torch.float64)
    for stream in streams:
        flat = (norm(stream) if signal == "normalised" else stream).flatten(0, -2).double()
        moments += flat.T @ flat
    _, vectors = torch.linalg.eigh(moments)  # ascending
    return vectors.flip(1)[:, :width].to(streams[0].dtype)


def _read(basis: Tensor, *linears: nn.Linear) -> None:
    for linear in linears:
        _set(linear, linear.weight @ basis)


def _write(basis: Tensor, linear: nn.Linear) -> None:
    _set(linear, basis.T @ linear.weight)


def _set(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape
