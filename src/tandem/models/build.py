"""Makes a decoder from a folder or a shape."""

from collections.abc import Callable
from pathlib import Path

import torch

from tandem.models.decoder import Decoder
from tandem.models.shape import Shape, read_shape


def build_decoder(
    source: str | Path | Shape,
    dtype: torch.dtype,
    device: torch.device | str,
    init: str = "random",
    seed: int = 0,
    load: Callable[[Decoder, str | Path], None] | None = None,
) -> Decoder:
    """A decoder with weights in it: `init` random draws them from `seed`, `init` checkpoint has
    `load` (that is `checkpoint.hugging_face.load_hugging_face`) read them from the folder `source`.
    """
    shape = source if isinstance(source, Shape) else read_shape(source)
    decoder = Decoder(shape, dtype, device)
    if init == "random":
        decoder.init_random(seed)
        return decoder
    assert init == "checkpoint", f"init is random or checkpoint, not {init!r}"
    assert load is not None, "init checkpoint wants load=load_hugging_face"
    assert not isinstance(source, Shape), "init checkpoint wants a folder, not a shape"
    load(decoder, source)
    return decoder


def dtype_of(name: str, device: torch.device | str) -> torch.dtype:
    """The torch dtype that `--dtype` auto, fp32 or bf16 means: auto is fp32 on a CPU, else bf16."""
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
