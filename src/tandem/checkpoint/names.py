"""Parameter names: ours, those of Hugging Face, and the bit-exact way between the two.

Ours keep a layer's q, k, v in one matrix (rows grouped by key head: its query heads, its key, its
value) and its gate and up in another (rows alternating), see `models/decoder.py`. Both directions
only permute rows, so a way there and back changes no bit. Row shards of whole key heads work too.
"""

import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tandem.errors import CheckpointError
from tandem.models.shape import Shape

Named = Iterable[tuple[str, Tensor]]

LAYER = re.compile(r"layers\.(\d+)\.(.+)")
HUGGING_FACE_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")

_OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_INNER = {
    "norm1.weight": ("input_layernorm.weight",),
    "qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "q_norm.weight": ("self_attn.q_norm.weight",),
    "k_norm.weight": ("self_attn.k_norm.weight",),
    "out.weight": ("self_attn.o_proj.weight",),
    "norm2.weight": ("post_attention_layernorm.weight",),
    "gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down.weight": ("mlp.down_proj.weight",),
}
_OUTER_BACK = {theirs: ours for ours, theirs in _OUTER.items()}
_INNER_BACK = {theirs: ours for ours, names in _INNER.items() for theirs in names}


def our_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The size of every tensor of a decoder by our name, in the order of the decoder."""
    qkv = (shape.num_heads + 2 * shape.num_key_heads) * shape.head_size
    sizes: dict[str, tuple[int, ...]] = {"embed.weight": (shape.vocab, shape.width)}
    for i in range(shape.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "norm1.weight": (shape.width,),
            "qkv.weight": (qkv, shape.width),
        }
        if shape.qkv_bias:
            layer["qkv.bias"] = (qkv,)
        if shape.qk_norm:
            layer["q_norm.weight"] = layer["k_norm.weight"] = (shape.head_size,)
        layer |= {
            "out.weight": (shape.width, shape.num_heads * shape.head_size),
            "norm2.weight": (shape.width,),
            "gate_up.weight": (2 * shape.ffn, shape.width),
            "down.weight": (shape.width, shape.ffn),
        }
        sizes |= {f"layers.{i}.{name}": size for name, size in layer.items()}
    sizes["norm.weight"] = (shape.width,)
    if not shape.tied:
        sizes["head.weight"] = (shape.vocab, shape.width)
    return sizes


def hugging_face_names(ours: str) -> tuple[str, ...]:
    """The Hugging Face names of the tensors that make up our tensor `ours`, in its row order."""
    if ours in _OUTER:
        return (_OUTER[ours],)
    found = LAYER.fullmatch(ours)
    if found is None or found[2] not in _INNER:
        raise CheckpointError(f"{ours!r} is not a parameter of our decoder")
    return tuple(f"model.layers.{found[1]}.{name}" for name in _INNER[found[2]])


def our_name(theirs: str) -> str:
    """The name of our tensor that the Hugging Face tensor `theirs` is (a part of)."""
    if theirs in _OUTER_BACK:
        return _OUTER_BACK[theirs]
    found = HUGGING_FACE_LAYER.fullmatch(theirs)
    if found is None or found[2] not in _INNER_BACK:
        raise CheckpointError(f"{theirs!r} is not a parameter that our decoder has")
    return f"layers.{found[1]}.{_INNER_BACK[found[2]]}"


def hugging_face_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The size of every tensor of a model by Hugging Face name."""
    rows = {
        "q_proj": shape.num_heads * shape.head_size,
        "k_proj": shape.num_key_heads * shape.head_size,
        "v_proj": shape.num_key_heads * shape.head_size,
        "gate_proj": shape.ffn,
        "up_proj": shape.ffn,
    }
    sizes = {}
    for ours, size in our_shapes(shape).items():
        names = hugging_face_names(ours)
        for theirs in names:
            first = rows[theirs.split(".")[-2]] if len(names) > 1 else size[0]
            sizes[theirs] = (first, *size[1:])
    return sizes


def split(shape: Shape, ours: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Our tensor as its Hugging Face tensors: copies where rows were grouped, itself elsewhere."""
    names = hugging_face_names(ours)
    tail = tensor.shape[1:]
    if len(names) == 1:
        return [(names[0], tensor)]
    if len(names) == 2:
        pairs = tensor.view(-1, 2, *tail)
        return [(name, pairs[:, i].contiguous()) for i, name in enumerate(names)]
    heads = tensor.view(-1, shape.group_size + 2, shape.head_size, *tail)
    parts = (heads[:, :-2], heads[:, -2], heads[:, -1])
    return [
        (name, part.reshape(-1, *tail).contiguous())
        for name, part in zip(names, parts, strict=True)
    ]


def merge(shape: Shape, ours: str, parts: list[Tensor]) -> Tensor:
    """Our tensor, made of the tensors of `hugging_face_names(ours)`; the inverse of `split`."""
    tail = parts[0].shape[1:]
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return torch.stack(parts, dim=1).reshape(-1, *tail)
    sizes = (shape.group_size, 1, 1)
    heads = [
        part.view(-1, size, shape.head_size, *tail) for part, size in zip(parts, sizes, strict=True)
    ]
    return torch.cat(heads, dim=1).reshape(-1, *tail)


def to_hugging_face(shape: Shape, named: Named) -> Iterator[tuple[str, Tensor]]:
    """The same tensors under Hugging Face names, one by one as `named` gives them."""
    for ours, tensor in named:
        yield from split(shape, ours, tensor)


def from_hugging_face(shape: Shape, named: Named) -> Iterator[tuple[str, Tensor]]:
    """The same tensors under our names, each as soon as its last part came.

    Raises CheckpointError for an unknown name, a name twice, and parts that never came.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for theirs, tensor in named:
        ours = our_name(theirs)
        parts = waiting.setdefault(ours, {})
        if theirs in parts:
            raise CheckpointError(f"{theirs} came twice")
        parts[theirs] = tensor
        names = hugging_face_names(ours)
        if len(parts) == len(names):
            del waiting[ours]
            yield ours, merge(shape, ours, [parts[name] for name in names])
    if waiting:
        lost = [
            name
            for ours, parts in waiting.items()
            for name in hugging_face_names(ours)
            if name not in parts
        ]
        raise CheckpointError(f"{len(lost)} tensors did not come: {', '.join(lost[:8])}")


def differences(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """One sentence for each tensor that is missing, not known, or of another size."""
    lines = [f"missing: {name}" for name in wanted if name not in found]
    lines += [f"not known: {name} {found[name]}" for name in found if name not in wanted]
    lines += [
        f"of another size: {name} is {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    return lines


def report(lines: list[str], limit: int = 20) -> str:
    """The first `limit` of these lines as indented text, and how many more there are."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "".join(f"\n  {line}" for line in lines[:limit] + more)
