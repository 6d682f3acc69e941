"""What a run starts from: which weights, for the policy and for its reference."""

from dataclasses import replace

import torch

from tandem.algo import wants_reference
from tandem.checkpoint import torch_dist
from tandem.checkpoint.find import Found, decide_load, decide_reference
from tandem.checkpoint.hugging_face import load_hugging_face
from tandem.checkpoint.pieces import Piece
from tandem.config import Config
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape
from tandem.parallel import Mesh
from tandem.train import build_parts


def find_start(cfg: Config) -> Found:
    """What the policy starts from, by the flags; raises CheckpointError."""
    return decide_load(
        load=cfg.checkpoint.load,
        ref_load=cfg.checkpoint.ref_load,
        hf_checkpoint=cfg.model.hf_checkpoint,
        save=cfg.checkpoint.save,
        ckpt_step=cfg.checkpoint.ckpt_step,
        ref_ckpt_step=cfg.checkpoint.ref_ckpt_step,
        finetune=cfg.checkpoint.finetune,
        init=cfg.model.init,
    )


def policy_decoder(cfg: Config, shape: Shape, found: Found, device: torch.device) -> Decoder:
    """The policy's decoder, whole; left unfilled where a checkpoint will be read into it."""
    (decoder,) = policy_parts(cfg, shape, found, device, Mesh())
    return decoder


def policy_parts(
    cfg: Config, shape: Shape, found: Found, device: torch.device, mesh: Mesh
) -> tuple[Decoder, ...]:
    """What this process holds of the policy; unfilled where a checkpoint will be read into it."""
    parts = build_parts(cfg, shape, mesh, device)
    if not found.is_resume:
        for part in parts:
            fill(part, found, cfg.debug.seed)
    return parts


def reference_parts(
    cfg: Config, shape: Shape, device: torch.device, mesh: Mesh
) -> tuple[Decoder, ...] | None:
    """What this process holds of the reference model, where a KL term asks for one."""
    if not wants_reference(cfg.algo):
        return None
    found = decide_reference(
        ref_load=cfg.checkpoint.ref_load,
        hf_checkpoint=cfg.model.hf_checkpoint,
        ref_ckpt_step=cfg.checkpoint.ref_ckpt_step,
    )
    if cfg.model.init == "random" and cfg.checkpoint.ref_load is None:
        # a run from nothing refers to the nothing it came from
        found = replace(found, kind="random", path=None, iteration=None)
    parts = build_parts(cfg, shape, mesh, device)
    for part in parts:
        fill(part, found, cfg.debug.seed)
    return parts


def fill(decoder: Decoder, found: Found, seed: int) -> None:
    """Puts the weights that were found into the decoder; raises CheckpointError."""
    if found.kind == "random":
        decoder.init_random(seed)
        return
    assert found.path is not None, "weights that are not random lie in a folder"
    if found.kind == "hugging_face":
        load_hugging_face(decoder, found.path)
        return
    torch_dist.load(found.path, _pieces(decoder), found.iteration, prefix=torch_dist.MODEL)


def _pieces(decoder: Decoder) -> dict[str, Piece]:
    """Where every tensor of this process lies in the whole one, by its name in a checkpoint."""
    pieces = {}
    for name, shard in decoder.shards().items():
        starts = [0] * len(shard.global_shape)
        for cut in shard.cuts:
            starts[cut.dim] = cut.start
        pieces[torch_dist.MODEL + name] = Piece(
            tensor=decoder.get_parameter(name).detach(),
            global_shape=shard.global_shape,
            starts=tuple(starts),
        )
    return pieces
