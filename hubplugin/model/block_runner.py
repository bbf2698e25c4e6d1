"""Runs a model one block at a time: transformers' own modules, built on the meta device and filled from a source.

Memory holds one block and the hidden states, whatever the model's size. Knows no method, no format and no metric; a
`WeightSource` may hand out any tensors of the right names and shapes.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.kernels import products, rotary_embedding
from hubplugin.kernels.instructions import panel_products, rms_norm
from hubplugin.limits import DEVICE_MICRO_TOKENS, MICRO_TOKENS
from hubplugin.model import experts, module_weights
from hubplugin.model.activations import Batch, Pool
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.families import Family, InputGroup
from hubplugin.model.construction import attention, settings, skeleton
from hubplugin.model.staged_block import StagedBlock


class Model:
    """A model whose blocks are filled on demand. Computes in float32 unless told otherwise."""

    def __init__(
        self,
        source: WeightSource,
        config: dict[str, Any],
        family: Family,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.source, self.family, self.dtype, self.device = source, family, dtype, device
        self._model = skeleton.build(config, family, dtype)
        self._trunk = self._model.model
        self._blocks = list(self._trunk.layers)
        self.dims = architecture.dimensions(config, family, "config.json")
        if type(self._model.lm_head) is nn.Linear:
            self._model.lm_head.__class__ = products.Head
        if device == "cpu":
            attention.install(self._model)
        # in float32 a whole model gives transformers' numbers to the bit; streamed blocks need not, see `embed`
        if dtype == torch.bfloat16 and device == "cpu":
            rms_norm.install(self._trunk)
        module_weights.fill_buffers(self._model, device)
        self._softcap = settings.softcap(self.settings, "final_logit_softcapping")

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def settings(self) -> PretrainedConfig:
        """config.json as transformers' own."""
        return cast(PretrainedConfig, self._model.config)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return int(self._trunk.embed_tokens.weight.shape[0])

    @property
    def rotary_frequencies(self) -> Tensor | None:
        """The frequencies [half of a head's dimensions] that config.json gives; None: layers have different ones."""
        return getattr(getattr(self._trunk, "rotary_emb", None), "inv_freq", None)

    def _load(self, module: nn.Module, prefix: str) -> None:
        module_weights.load(module, self.source, prefix, self.device, self.dtype)

    @torch.inference_mode()
    def embed(self, tokens: Tensor, folder: Path | None = None, micro_tokens: int | None = None) -> list[Batch]:
        """Embed token ids [sequences, tokens] and record the masks and positions the model gives each block.

        With a folder, activations live in files there instead of in memory. A batch has sequences of `micro_tokens`
        in all, or of as many as suit the device. From now on linears of blocks multiply by packed weights where that is
        faster, and norms and rotations take one pass: many tokens will pass them, and last bits do not count.
        """
        if self.device == "cpu":
            panel_products.install(self._trunk)
            rms_norm.install(self._trunk)
            rotary_embedding.install(self._trunk)
        self._load(self._trunk.embed_tokens, self.family.embed)
        recorders = [skeleton.Recorder(block) for block in self._blocks]
        self._trunk.layers = nn.ModuleList(recorders)
        norm, self._trunk.norm = self._trunk.norm, nn.Identity()
        suiting = MICRO_TOKENS if self.device == "cpu" else DEVICE_MICRO_TOKENS
        rows = max(1, (micro_tokens or suiting) // tokens.shape[1])
        batches: list[Batch] = []
        pool = Pool(len(tokens))
        for number, ids in enumerate(tokens.long().split(rows)):
            hidden = self._trunk(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
            alike = batches and batches[0].shape("hidden") == hidden.shape  # no padding: same shape, same masks
            keywords = batches[0].keywords if alike else [recorder.keywords for recorder in recorders]
            batches.append(Batch(keywords, number * rows, pool, folder))
            batches[-1].put("hidden", hidden)
        self._trunk.layers, self._trunk.norm = nn.ModuleList(self._blocks), norm
        module_weights.unload(self._trunk.embed_tokens)
        return batches

    def block(self, index: int) -> nn.Module:
        """Block `index` with its weights. Give it back with `free`."""
        self._load(self._blocks[index], self.family.block.format(i=index))
        return self._blocks[index]

    def loaded(self, index: int) -> nn.Module:
        """Block `index` with the weights that it has now."""
        return self._blocks[index]

    def free(self, index: int) -> None:
        """Forget a block's weights."""
        module_weights.unload(self._blocks[index])

    def load_all(self, stacked: bool = False) -> nn.Module:
        """transformers' model with all its weights, embeddings tied where the source has no head.

        `stacked` puts a block's experts back into the tensors that transformers multiplies at once: faster for few
        tokens, but there are no linears of experts then.
        """
        self._load(self._trunk.embed_tokens, self.family.embed)
        for index in range(len(self)):
            block = self.block(index)
            if stacked and self.family.experts:
                experts.stack(block, self.family.experts)
        self._load(self._trunk.norm, self.family.norm)
        if f"{self.family.head}.weight" in self.source:
            self._load(self._model.lm_head, self.family.head)
        else:
            self._model.lm_head.weight = self._trunk.embed_tokens.weight
        return cast(nn.Module, self._model)

    def copy_block(self, index: int) -> nn.Module:
        """A copy of a filled block that keeps its weights when those of the block are replaced."""
        block = self._blocks[index]
        return copy.deepcopy(block, {id(tensor): tensor for tensor in block.parameters()})

    def staged(self, index: int, block: nn.Module | None = None) -> StagedBlock:
        """Block `index`, or a copy of it, for a forward pass in stages."""
        return StagedBlock(self._blocks[index] if block is None else block, index, self.family)

    def capture_inputs(self, index: int, batches: list[Batch], input_group: InputGroup) -> Iterator[Tensor]:
        """As `StagedBlock.capture_inputs`, of the block as it is now."""
        return self.staged(index).capture_inputs(batches, input_group)

    def forward_block(self, index: int, batches: list[Batch], block: nn.Module | None = None) -> None:
        """Replace the hidden states by the block's output, taking up where the last stage ended."""
        self.staged(index, block).forward(batches)

    def on_inputs(self, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> None:
        """As `on_inputs` below, for linears of this model."""
        on_inputs(self._model, names, change)

    @torch.inference_mode()
    def hidden_states(self, tokens: Tensor, progress: Callable[[int], None] = lambda index: None) -> Tensor:
        """All blocks over token ids [sequences, tokens] -> last hidden states, normalised."""
        batches = self.embed(tokens)
        for index in range(len(self)):
            self.block(index)
            self.forward_block(index, batches)
            self.free(index)
            progress(index)
        return self.final_norm(batches)

    @torch.inference_mode()
    def final_norm(self, batches: list[Batch]) -> Tensor:
        """The final norm over all batches: [sequences, tokens, hidden]."""
        self._load(self._trunk.norm, self.family.norm)
        return torch.cat([self._trunk.norm(batch.hidden) for batch in batches])

    @torch.inference_mode()
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits [..., vocabulary] in float32 of normalised hidden states [..., hidden].

        They may be written to `out` [rows, vocabulary], if that is given: float32 memory on the CPU, for use once more.
        In bfloat16 they are rounded to it on the way, except where a CPU gives such products in float32.
        """
        head = self._head()
        head.out = self._memory(hidden.flatten(0, -2)) if out is None else out
        logits: Tensor = head(hidden).float()
        head.out = None
        return logits.div_(self._softcap).tanh_().mul_(self._softcap) if self._softcap else logits

    def back_through_head(self, hidden: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient in last hidden states [positions, hidden], not yet normalised, from that in their logits.

        `gradient` makes it of the logits [positions, vocabulary], in float32, and may overwrite them.
        """
        rows = hidden.clone().requires_grad_()
        self._load(self._trunk.norm, self.family.norm)
        with torch.enable_grad():
            normalised = self._trunk.norm(rows)
        logits = self.logits(normalised.detach())
        slope = 1 - (logits / self._softcap).square_() if self._softcap else None
        behind = gradient(logits) if slope is None else gradient(logits) * slope
        (before,) = torch.autograd.grad(normalised, rows, behind.to(self.dtype) @ self._head().weight)
        return before

    def _head(self) -> Any:
        """The output head, with its weights from the first time on."""
        head = self._model.lm_head
        if head.weight.is_meta:
            tied = f"{self.family.head}.weight" not in self.source
            self._load(head, self.family.embed if tied else self.family.head)
        return head

    def free_head(self) -> None:
        """Forget the output head's weights."""
        module_weights.unload(self._model.lm_head)

    def _memory(self, rows: Tensor) -> Tensor | None:
        """Where logits of rows [rows, hidden] can be written to by `products.Head`."""
        weight = self._model.lm_head.weight
        return torch.empty(len(rows), len(weight)) if products.fits(rows, weight) else None


def on_inputs(module: nn.Module, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> None:
    """Let linears of a model, by full module path, see what `change` makes of their inputs."""
    for name in names:
        module.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
