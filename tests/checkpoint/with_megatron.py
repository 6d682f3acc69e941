"""Saves a small GPT model with Megatron-Core, or loads one that was written for it.

    python with_megatron.py save|load FOLDER tied|untied

Its parameters go to, or must be those of, FOLDER.pt. Megatron-Core asks for a GPU in places where
none is needed; those are answered here.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F


def model(*, is_tied: bool):
    """Two layers with four heads of eight in two groups, as Qwen3 has them."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    cfg = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=8,
        ffn_hidden_size=48,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        qk_layernorm=True,
        use_cpu_initialization=True,
        params_dtype=torch.bfloat16,
        bf16=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )
    return GPTModel(
        cfg,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        vocab_size=64,
        max_sequence_length=64,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=is_tied,
    )


def main() -> None:
    way, folder, is_tied = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "tied"
    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *device: None
    from megatron.core import dist_checkpointing, parallel_state

    store = f"file://{folder}.store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1, 1)
    gpt = model(is_tied=is_tied)
    if way == "save":
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in gpt.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
        folder.mkdir(parents=True)
        state = {"model": gpt.sharded_state_dict(), "iteration": 7, "args": None}
        dist_checkpointing.save(state, str(folder))
        torch.save({name: p.detach() for name, p in gpt.named_parameters()}, f"{folder}.pt")
    else:
        state = dist_checkpointing.load({"model": gpt.sharded_state_dict()}, str(folder))
        gpt.load_state_dict(state["model"])
        wanted = torch.load(sys.argv[4])
        for name, parameter in gpt.named_parameters():
            assert parameter.equal(wanted[name]), name
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
