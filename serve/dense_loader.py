"""vLLM's loader that makes dense weights of codes, whatever format they are in. Imported by vLLM alone, at need.

The model is built as one that has no quantization, so that all its linears are vLLM's own dense ones. Each weight is
dequantized when its turn comes, as evaluation dequantizes it, and rounded to the model's dtype. From then on the model
has the base's speed and memory, on any machine that runs the base. How codes came about is not known here.
"""

import dataclasses
from collections.abc import Generator
from pathlib import Path

from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from serve.codes import LOAD_FORMAT


@register_model_loader(LOAD_FORMAT)
class DenseLoader(DefaultModelLoader):
    """vLLM's own loader of safetensors, but for the tensors that it hands out."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(dataclasses.replace(load_config, load_format="safetensors"))

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Generator[tuple[str, Tensor], None, None]:
        """Dense tensors by the names that a dense checkpoint has; the tensors as they are of a model whose quantization
        vLLM knows of, such as a drafter's. Raises ValueError where an engine should round activations."""
        from hubplugin.checkpoint.dense_view import DenseView  # seldom needed, and known to every process of vLLM

        if model_config.quantization is not None:
            yield from super().get_all_weights(model_config, model)
            return
        folder, *_ = self._prepare_weights(model_config.model, None, model_config.revision, False, None)
        view = DenseView.without_adapter(Path(folder))  # vLLM adds an adapter's products
        if view.int8_inputs:
            raise ValueError("activations are to be rounded, and dense linears do not round them")
        for name in view.names():
            yield name, view.get(name)
