"""What a method returns: the dense weight the next layer will see, and how it is stored. Dataclasses only."""

from dataclasses import dataclass

from torch import Tensor

from hubplugin.checkpoint.encodings import Encoding


@dataclass(frozen=True)
class Compressed:
    """One linear (or linears stacked by rows), compressed."""

    weight: Tensor  # dense [outputs, inputs kept]: what the next layer will see
    encoding: Encoding
    loss: float  # tr((W-W')H(W-W')^T) / tr(W H W^T)
    damp: float  # damping actually used
    fallback: str | None  # None: nothing unusual happened
    dead_inputs: int  # inputs the calibration never excited
