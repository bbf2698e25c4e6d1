"""Runs a model one block at a time: transformers' own modules, built on the meta device and filled from a reader.

Memory holds the embeddings, one block and the hidden states, whatever the model's size. Knows no method, no format and
no metric; `read` may hand out any tensors of the right names and shapes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hubplugin.errors import CheckpointError
from hubplugin.estimate import MICRO_TOKENS
from hubplugin.family import Family
from hubplugin.hessian import Moment


class Source(Protocol):
    """Where weights come from: tensor names of a plain checkpoint, dense values."""

    def get(self, name: str) -> Tensor: ...

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]: ...

    def __contains__(self, name: str) -> bool: ...


@dataclass
class Batch:
    """Hidden states of a few sequences [sequences, tokens, hidden] and what the model hands every block with them."""

    hidden: Tensor
    keywords: list[dict[str, Any]]  # by block


class _Stop(BaseException):
    """Ends a block's forward once its tap was seen. Never leaves this file."""


class _Recorder(nn.Module):
    """Stands in for a block: notes what the model calls it with and passes the hidden states on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)  # some models read it from the block
        self.keywords: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **keywords: Any) -> Tensor:
        self.keywords = keywords
        return hidden


class Model:
    """A model whose blocks are filled on demand. Computes in float32 unless told otherwise."""

    def __init__(
        self,
        source: Source,
        config: dict[str, Any],
        family: Family,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.source, self.family, self.dtype, self.device = source, family, dtype, device
        plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
        settings = AutoConfig.for_model(**plain)
        # scaled-dot-product kernels have no soft-capping; eager attention does
        attention = "eager" if getattr(settings, "attn_logit_softcapping", None) else "sdpa"
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=attention)
        self._model.eval()
        self._trunk = self._model.model
        self._blocks = list(self._trunk.layers)
        self._fill_buffers()
        self._load(self._trunk.embed_tokens, family.embed)
        self._softcap = getattr(settings, "final_logit_softcapping", None)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return int(self._trunk.embed_tokens.weight.shape[0])

    def _fill_buffers(self) -> None:
        """Rotary frequencies and the like are computed, not stored: let transformers initialise them for real."""
        for module in self._trunk.modules():
            empty = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
            for name in empty:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            if empty:
                self._model._init_weights(module)

    def _load(self, module: nn.Module, prefix: str) -> None:
        state = {name: tensor.to(self.device, self.dtype) for name, tensor in self.source.below(prefix)}
        try:
            module.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(prefix, f"does not fit the architecture: {error}", "pull the model again") from error
        module.requires_grad_(False)

    @torch.inference_mode()
    def start(self, tokens: Tensor) -> list[Batch]:
        """Embed token ids [sequences, tokens] and record the masks and positions the model gives each block."""
        recorders = [_Recorder(block) for block in self._blocks]
        self._trunk.layers = nn.ModuleList(recorders)
        norm, self._trunk.norm = self._trunk.norm, nn.Identity()
        rows = max(1, MICRO_TOKENS // tokens.shape[1])
        batches = []
        for ids in tokens.long().split(rows):
            hidden = self._trunk(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
            batches.append(Batch(hidden, [recorder.keywords for recorder in recorders]))
        self._trunk.layers, self._trunk.norm = nn.ModuleList(self._blocks), norm
        return batches

    def block(self, index: int) -> nn.Module:
        """Block `index` with its weights. Give it back with `free`."""
        self._load(self._blocks[index], self.family.block.format(i=index))
        return self._blocks[index]

    def free(self, index: int) -> None:
        """Forget a block's weights."""
        self._blocks[index].to("meta")

    @torch.inference_mode()
    def collect(self, index: int, batches: list[Batch], linear: str) -> Moment:
        """Second moments of the inputs of one linear of a block, as the block stands now."""
        moment = Moment()

        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            moment.add(inputs[0])
            raise _Stop

        block = self._blocks[index]
        hook = block.get_submodule(linear).register_forward_pre_hook(see)
        try:
            for batch in batches:
                try:
                    block(batch.hidden, **batch.keywords[index])
                except _Stop:
                    continue
        finally:
            hook.remove()
        return moment

    @torch.inference_mode()
    def advance(self, index: int, batches: list[Batch]) -> None:
        """Replace the hidden states by the block's output."""
        for batch in batches:
            out = self._blocks[index](batch.hidden, **batch.keywords[index])
            batch.hidden = out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def walk(self, tokens: Tensor, progress: Callable[[int], None] = lambda index: None) -> Tensor:
        """All blocks over token ids [sequences, tokens] -> last hidden states, normalised."""
        batches = self.start(tokens)
        for index in range(len(self)):
            self.block(index)
            self.advance(index, batches)
            self.free(index)
            progress(index)
        return self.finish(batches)

    @torch.inference_mode()
    def finish(self, batches: list[Batch]) -> Tensor:
        """The final norm over all batches: [sequences, tokens, hidden]."""
        self._load(self._trunk.norm, self.family.norm)
        return torch.cat([self._trunk.norm(batch.hidden) for batch in batches])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] in float32 of normalised hidden states [..., hidden]."""
        tied = f"{self.family.head}.weight" not in self.source
        if self._model.lm_head.weight.is_meta or tied:
            if tied:
                self._model.lm_head.weight = self._trunk.embed_tokens.weight
            else:
                self._load(self._model.lm_head, self.family.head)
        out = self._model.lm_head(hidden).float()
        if self._softcap:
            out = torch.tanh(out / self._softcap) * self._softcap
        return out
