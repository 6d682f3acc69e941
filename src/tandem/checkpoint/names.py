"""Parameter names: ours, those of Hugging Face, and the bit-exact way between the two.

Ours keep a layer's q, k, v in one matrix (rows grouped by key head: its query heads, its key, its
value) and its gate and up in another (rows alternating), see `models/decoder.py`; the matrices of
all experts of a layer are one tensor. Both directions only permute rows, so a way there and back
changes no bit. Row shards of whole key heads work too.
"""

import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tandem.errors import CheckpointError
from tandem.models.part import Shard
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
    "experts.router.weight": ("mlp.gate.weight",),
    "experts.shared_gate_up.weight": (
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
    ),
    "experts.shared_down.weight": ("mlp.shared_expert.down_proj.weight",),
    "experts.shared_gate.weight": ("mlp.shared_expert_gate.weight",),
}
_EACH_EXPERT = {
    "experts.gate_up.weight": ("gate_proj.weight", "up_proj.weight"),
    "experts.down.weight": ("down_proj.weight",),
}
"""Tensors `[E, ...]` of ours, and what each expert has of them."""
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(.+)")
_OUTER_BACK = {theirs: ours for ours, theirs in _OUTER.items()}
_INNER_BACK = {theirs: ours for ours, names in _INNER.items() for theirs in names}
_EXPERT_BACK = {theirs: ours for ours, names in _EACH_EXPERT.items() for theirs in names}


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
        }
        layer |= _feed_forward(shape, i)
        sizes |= {f"layers.{i}.{name}": size for name, size in layer.items()}
    sizes["norm.weight"] = (shape.width,)
    if not shape.tied:
        sizes["head.weight"] = (shape.vocab, shape.width)
    return sizes


def _feed_forward(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    width, mixture = shape.width, shape.mixture
    if mixture is None or not shape.has_experts(layer):
        return {"gate_up.weight": (2 * shape.ffn, width), "down.weight": (width, shape.ffn)}
    count, ffn = mixture.num_experts, mixture.ffn
    sizes: dict[str, tuple[int, ...]] = {
        "experts.router.weight": (count, width),
        "experts.gate_up.weight": (count, 2 * ffn, width),
        "experts.down.weight": (count, width, ffn),
    }
    if mixture.shared_ffn:
        sizes["experts.shared_gate_up.weight"] = (2 * mixture.shared_ffn, width)
        sizes["experts.shared_down.weight"] = (width, mixture.shared_ffn)
    if mixture.has_shared_gate:
        sizes["experts.shared_gate.weight"] = (1, width)
    return sizes


def hugging_face_names(shape: Shape, ours: str) -> tuple[str, ...]:
    """The Hugging Face names of the tensors that make up our tensor `ours`, in its row order."""
    if ours in _OUTER:
        return (_OUTER[ours],)
    found = LAYER.fullmatch(ours)
    if found is None or found[2] not in _INNER | _EACH_EXPERT:
        raise CheckpointError(f"{ours!r} is not a parameter of our decoder")
    inner = _INNER.get(found[2])
    if inner is None:
        count = 0 if shape.mixture is None else shape.mixture.num_experts
        parts = _EACH_EXPERT[found[2]]
        inner = tuple(f"mlp.experts.{e}.{part}" for e in range(count) for part in parts)
    return tuple(f"model.layers.{found[1]}.{name}" for name in inner)


def our_name(theirs: str) -> str:
    """The name of our tensor that the Hugging Face tensor `theirs` is (a part of)."""
    if theirs in _OUTER_BACK:
        return _OUTER_BACK[theirs]
    found = HUGGING_FACE_LAYER.fullmatch(theirs)
    if found is not None:
        expert = _EXPERT.fullmatch(found[2])
        ours = _INNER_BACK.get(found[2]) if expert is None else _EXPERT_BACK.get(expert[2])
        if ours is not None:
            return f"layers.{found[1]}.{ours}"
    raise CheckpointError(f"{theirs!r} is not a parameter that our decoder has")


def hugging_face_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The size of every tensor of a model by Hugging Face name."""
    return {
        theirs: _piece_size(shape, theirs, size[1:] if len(size) == 3 else size)
        for ours, size in our_shapes(shape).items()
        for theirs in hugging_face_names(shape, ours)
    }


def _piece_size(shape: Shape, theirs: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a tensor of theirs that is a part of one of ours, or of one expert of that."""
    rows = {
        "q_proj": shape.num_heads * shape.head_size,
        "k_proj": shape.num_key_heads * shape.head_size,
        "v_proj": shape.num_key_heads * shape.head_size,
        "gate_proj": ours[0] // 2,
        "up_proj": ours[0] // 2,
    }
    return (rows.get(theirs.split(".")[-2], ours[0]), *ours[1:])


def pieces(shape: Shape, ours: str, shard: Shard) -> list[tuple[str, tuple[slice, ...]]]:
    """The Hugging Face tensors that a shard of our tensor is made of, and what to take of each.

    `merge` makes the shard of these; a dim that is not named is taken whole.
    """
    names = hugging_face_names(shape, ours)
    is_of_experts = len(shard.global_shape) == 3
    taken: dict[int, tuple[int, int]] = {}  # first and last + 1 of each dim, as shares of the whole
    for cut in shard.cuts:
        if is_of_experts and cut.dim == 0:
            each = len(names) // shard.global_shape[0]
            names = names[cut.start * each : (cut.start + cut.size) * each]
        else:
            taken[cut.dim - is_of_experts] = (cut.start, cut.start + cut.size)
    found = []
    for theirs in names:
        size = _piece_size(shape, theirs, shard.global_shape[is_of_experts:])
        totals = zip(size, shard.global_shape[is_of_experts:], strict=True)
        # rows are grouped evenly, so a share of ours is the same share of each of theirs
        spans = [
            slice(*(end * their_total // our_total for end in taken.get(dim, (0, our_total))))
            for dim, (their_total, our_total) in enumerate(totals)
        ]
        found.append((theirs, tuple(spans)))
    return found


def split(shape: Shape, ours: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Our tensor as its Hugging Face tensors: copies where rows were grouped, itself elsewhere."""
    names = hugging_face_names(shape, ours)
    tail = tensor.shape[1:]
    if _is_pairs(ours):
        experts = tensor.unbind(0) if tensor.dim() == 3 else (tensor,)
        pairs = (expert.view(-1, 2, *expert.shape[1:])[:, i] for expert in experts for i in (0, 1))
        return [(name, part.contiguous()) for name, part in zip(names, pairs, strict=True)]
    if tensor.dim() == 3:
        return list(zip(names, tensor.unbind(0), strict=True))
    if len(names) == 1:
        return [(names[0], tensor)]
    heads = tensor.view(-1, shape.group_size + 2, shape.head_size, *tail)
    parts = (heads[:, :-2], heads[:, -2], heads[:, -1])
    return [
        (name, part.reshape(-1, *tail).contiguous())
        for name, part in zip(names, parts, strict=True)
    ]


def merge(shape: Shape, ours: str, parts: list[Tensor]) -> Tensor:
    """Our tensor, made of those of `hugging_face_names(shape, ours)`; the inverse of `split`."""
    tail = parts[0].shape[1:]
    is_of_experts = ours.endswith(tuple(_EACH_EXPERT))
    if _is_pairs(ours):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        blocks = [torch.stack(pair, dim=1).reshape(-1, *tail) for pair in pairs]
        return torch.stack(blocks) if is_of_experts else blocks[0]
    if is_of_experts:
        return torch.stack(parts)
    if len(parts) == 1:
        return parts[0]
    sizes = (shape.group_size, 1, 1)
    heads = [
        part.view(-1, size, shape.head_size, *tail) for part, size in zip(parts, sizes, strict=True)
    ]
    return torch.cat(heads, dim=1).reshape(-1, *tail)


def _is_pairs(ours: str) -> bool:
    """Whether rows of gate and up alternate in this tensor."""
    return ours.endswith("gate_up.weight")


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
        names = hugging_face_names(shape, ours)
        if len(parts) == len(names):
            del waiting[ours]
            yield ours, merge(shape, ours, [parts[name] for name in names])
    if waiting:
        lost = [
            name
            for ours, parts in waiting.items()
            for name in hugging_face_names(shape, ours)
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
