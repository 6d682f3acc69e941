"""What a run starts from: which weights, for the policy and for its reference."""

from dataclasses import replace

import torch

from tandem.algo import wants_reference
from tandem.checkpoint import torch_dist
from tandem.checkpoint.find import Found, decide_load, decide_reference
from tandem.checkpoint.hugging_face import load_hugging_face
from tandem.config import Config
from tandem.models.build import dtype_of
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape


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
    """The policy's decoder; left unfilled where a whole checkpoint will be read into it."""
    decoder = Decoder(shape, dtype_of(cfg.model.dtype, device), device)
    if not found.is_resume:
        fill(decoder, found, cfg.debug.seed)
    return decoder


def reference_decoder(cfg: Config, shape: Shape, device: torch.device) -> Decoder | None:
    """The reference model, where a KL term asks for one."""
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
    decoder = Decoder(shape, dtype_of(cfg.model.dtype, device), device)
    fill(decoder, found, cfg.debug.seed)
    return decoder


def fill(decoder: Decoder, found: Found, seed: int) -> None:
    """Puts the weights that were found into the decoder; raises CheckpointError."""
    if found.kind == "random":
        decoder.init_random(seed)
        return
    assert found.path is not None, "weights that are not random lie in a folder"
    if found.kind == "hugging_face":
        load_hugging_face(decoder, found.path)
        return
    named = {torch_dist.MODEL + name: p.detach() for name, p in decoder.named_parameters()}
    torch_dist.load(found.path, named, found.iteration, prefix=torch_dist.MODEL)
