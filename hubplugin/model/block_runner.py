"""Runs a model one block at a time: transformers' own modules, built on the meta device and filled from a reader.

Memory holds one block and the hidden states, whatever the model's size. A pass is staged: a block is walked tap by tap,
each time from where the last stage ended, so that linears can change on the way at the price of one forward pass. Knows
no method, no format and no metric; a `WeightSource` may hand out any tensors of the right names and shapes.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.errors import CheckpointError
from hubplugin.kernels import rms_norm
from hubplugin.limits import DEVICE_MICRO_TOKENS, MICRO_TOKENS
from hubplugin.model import architecture, experts, heterogeneous
from hubplugin.model.activations import Batch, Pool
from hubplugin.model.families import Family, InputGroup, Sublayer

REACHING, CHOSEN = "experts.hidden", "experts.chosen"  # what a batch keeps of the tokens that come to a router


class _Stop(BaseException):
    """Ends a block's forward once its tap was seen. Never leaves this file."""


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """While this holds, what goes into a module is noted, and the forward pass ends there."""
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.extend(inputs)
        raise _Stop

    hook = module.register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _staged(block: nn.Module, batch: Batch, parts: tuple[Sublayer, ...], remember: bool) -> Iterator[None]:
    """While this holds, parts of a block take up where a batch's last stage ended."""
    modules = [block.get_submodule(part.name) for part in parts]
    for part, module in zip(parts, modules, strict=True):
        module.forward = _resumed(block, module, batch, part, remember)
    for part in parts:
        if part.output in batch or part.input in batch:  # nobody reads what its norm makes
            modules.append(block.get_submodule(part.norm))
            modules[-1].forward = lambda hidden: hidden
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _resumed(block: nn.Module, module: nn.Module, batch: Batch, part: Sublayer, remember: bool) -> Callable[..., Any]:
    """The forward of a part: its known output; else its last linear on its known input; else all of it."""
    whole = module.forward

    def forward(*inputs: Any, **keywords: Any) -> Any:
        if part.output in batch:
            out = batch.get(part.output)
        elif part.input in batch:
            out = block.get_submodule(part.end)(batch.get(part.input))
        else:
            result = whole(*inputs, **keywords)
            out = result[0] if part.pair else result
        if remember and part.output not in batch:
            batch.put(part.output, out)
            batch.drop(part.input)
        return (out, None) if part.pair else out

    return forward


class _Recorder(nn.Module):
    """Stands in for a block: notes what the model calls it with and passes the hidden states on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)  # some models read it from the block
        self.keywords: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **keywords: Any) -> Tensor:
        self.keywords = keywords
        return hidden


def _unload(module: nn.Module) -> None:
    """Forget a module's weights; what it computed for itself stays."""
    for inner in module.modules():
        for name, weight in inner.named_parameters(recurse=False):
            setattr(inner, name, nn.Parameter(weight.to("meta"), requires_grad=False))


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
        settings = heterogeneous.transformers_config(config)
        # scaled-dot-product kernels have no soft-capping; eager attention does
        attention = "eager" if getattr(settings, "attn_logit_softcapping", None) else "sdpa"
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=attention)
        self._model.eval()
        self._trunk = self._model.model
        self._blocks = list(self._trunk.layers)
        self.dims = architecture.dimensions(config, family, "config.json")
        for index, block in enumerate(self._blocks):
            if family.experts:
                experts.install(block, family.experts)
            if self.dims.blocks:
                heterogeneous.fit(block, family, self.dims.at(index))
        if dtype == torch.bfloat16 and device == "cpu":
            rms_norm.install(self._trunk)
        self._fill_buffers()
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
    def embed(self, tokens: Tensor, folder: Path | None = None, micro_tokens: int | None = None) -> list[Batch]:
        """Embed token ids [sequences, tokens] and record the masks and positions the model gives each block.

        With a folder, activations live in files there instead of in memory. A batch has sequences of `micro_tokens`
        in all, or of as many as suit the device.
        """
        self._load(self._trunk.embed_tokens, self.family.embed)
        recorders = [_Recorder(block) for block in self._blocks]
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
        _unload(self._trunk.embed_tokens)
        return batches

    def block(self, index: int) -> nn.Module:
        """Block `index` with its weights. Give it back with `free`."""
        self._load(self._blocks[index], self.family.block.format(i=index))
        return self._blocks[index]

    def free(self, index: int) -> None:
        """Forget a block's weights."""
        _unload(self._blocks[index])

    def whole(self) -> nn.Module:
        """transformers' whole model with all its weights, embeddings tied where the source has no head."""
        self._load(self._trunk.embed_tokens, self.family.embed)
        for index in range(len(self)):
            self.block(index)
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

    @torch.inference_mode()
    def capture_inputs(
        self, index: int, batches: list[Batch], input_group: InputGroup, block: nn.Module | None = None
    ) -> Iterator[Tensor]:
        """The inputs [sequences, tokens, inputs] of a tap's linears, batch by batch, as the block stands now.

        Parts of the block that end before the tap run once and are remembered: visit taps in the order in which the
        block runs them. `block` may be a twin; its batches must then be its own.
        """
        block = self._blocks[index] if block is None else block
        if input_group.expert is not None:
            yield from self._routed(index, batches, input_group, block)
            return
        parts = self.family.sublayers
        at = next(number for number, part in enumerate(parts) if input_group.linears[0].startswith(part.name + "."))
        linear = block.get_submodule(input_group.linears[0])
        for batch in batches:
            batch.drop(parts[at].input)
            with _staged(block, batch, parts[:at], remember=True), _watched(linear) as seen, suppress(_Stop):
                block(batch.hidden, **batch.keywords[index])
            if input_group.linears[0] == parts[at].end:
                batch.put(parts[at].input, seen[0])
            yield seen[0]

    def _routed(self, index: int, batches: list[Batch], input_group: InputGroup, block: nn.Module) -> Iterator[Tensor]:
        """The inputs [tokens, inputs] of an expert's linears, of the tokens that the router sends there."""
        assert input_group.expert is not None
        for batch in batches:
            self._reach(index, batch, block)
            here = torch.eq(batch.get(CHOSEN), input_group.expert).any(dim=-1)
            yield self._inside(input_group, block, batch.rows(REACHING, here))

    @torch.inference_mode()
    def unrouted_inputs(
        self, index: int, batches: list[Batch], input_group: InputGroup, most: int | None = None
    ) -> Iterator[Tensor]:
        """What the linears of an expert would be given [tokens, inputs], were all tokens of the block sent there.

        Of every n-th token, where there are more than `most`.
        """
        block, first = self._blocks[index], 0
        for batch in batches:
            self._reach(index, batch, block)
        step = -(-sum(batch.shape(REACHING)[0] for batch in batches) // most) if most else 1
        for batch in batches:
            yield self._inside(input_group, block, batch.rows(REACHING, slice(-first % step, None, step)))
            first += batch.shape(REACHING)[0]

    def _inside(self, input_group: InputGroup, block: nn.Module, rows: Tensor) -> Tensor:
        names = self.family.experts
        assert names is not None
        expert = cast(experts.Expert, block.get_submodule(f"{names.name}.{input_group.expert}"))
        return expert.inner(rows) if input_group.linears[0].endswith(f".{names.down}") else rows

    def _reach(self, index: int, batch: Batch, block: nn.Module) -> None:
        """Keep the tokens [tokens, hidden] of a batch that come to the router, and where each is sent."""
        if REACHING in batch:
            return
        names, parts = self.family.experts, self.family.sublayers
        assert names is not None
        inside = block.get_submodule(names.name)
        with _staged(block, batch, parts[:-1], remember=True), _watched(inside) as seen, suppress(_Stop):
            block(batch.hidden, **batch.keywords[index])
        batch.put(REACHING, seen[0])
        batch.put(CHOSEN, seen[1])

    def residual(self, batch: Batch, input_group: InputGroup) -> Tensor:
        """What the output of a part's last linear is added to: the block's input and the outputs of earlier parts.

        For the tap that was visited last.
        """
        ends = [part.end for part in self.family.sublayers]
        earlier = self.family.sublayers[: ends.index(input_group.linears[0])]
        return sum((batch.get(part.output) for part in earlier), batch.hidden)

    def forget(self, batches: list[Batch], input_group: InputGroup) -> None:
        """The inputs of a visited tap changed since: run what leads to it again when it is needed."""
        for batch in batches:
            batch.drop(*(part.input for part in self.family.sublayers if input_group.linears[0] == part.end))

    @torch.inference_mode()
    def forward_block(self, index: int, batches: list[Batch], block: nn.Module | None = None) -> None:
        """Replace the hidden states by the block's output, taking up where the last stage ended."""
        block = self._blocks[index] if block is None else block
        for batch in batches:
            with _staged(block, batch, self.family.sublayers, remember=False):
                out = block(batch.hidden, **batch.keywords[index])
            batch.put("hidden", out[0] if isinstance(out, tuple) else out)
            batch.drop(*(key for part in self.family.sublayers for key in (part.input, part.output)), REACHING, CHOSEN)

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
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] in float32 of normalised hidden states [..., hidden]."""
        if self._model.lm_head.weight.is_meta:
            tied = f"{self.family.head}.weight" not in self.source
            self._load(self._model.lm_head, self.family.embed if tied else self.family.head)
        out = self._model.lm_head(hidden).float()
        if self._softcap:
            out = torch.tanh(out / self._softcap) * self._softcap
        return out


def on_inputs(module: nn.Module, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> None:
    """Let linears of a model, by full module path, see what `change` makes of their inputs."""
    for name in names:
        module.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
