"""Greedy tokens equal those of transformers."""

import numpy as np
import pytest
import torch

from tandem.checkpoint.hugging_face import load_hugging_face
from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.models.build import build_decoder
from tandem.types import Request, SampleKey, Sampling

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 5,
    "pad_token_id": 0,
}


EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
}


@pytest.mark.parametrize("family", ["Qwen3", "Qwen2", "Llama", "Qwen3Moe"])
def test_greedy_tokens_equal_those_of_transformers(tmp_path, family):
    import transformers

    sizes = SIZES | EXPERTS if family == "Qwen3Moe" else SIZES
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(float(parameter.dim() == 1), 0.15, generator=generator)
    model.save_pretrained(tmp_path)
    decoder = build_decoder(
        tmp_path, torch.float32, "cpu", init="checkpoint", load=load_hugging_face
    )
    prompts = [np.arange(3, 3 + 9 * n, n) % 97 for n in range(1, 7)]
    cfg = EngineConfig(engine_block_size=8, engine_cache_tokens=2048, engine_prefill_tokens=16)
    engine = TorchEngine(decoder, None, cfg, "cpu", decoder.shape.eos_token_ids)
    requests = [
        Request(
            id=str(n),
            tokens_T=tokens_T.astype(np.int32),
            sampling=Sampling(max_new_tokens=40, temperature=0.0),
            key=SampleKey(seed=0, prompt=n, sample=0),
        )
        for n, tokens_T in enumerate(prompts)
    ]
    for tokens_T, completion in zip(prompts, engine.generate(requests), strict=True):
        ids = torch.as_tensor(tokens_T)[None]
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
        )
        assert completion.tokens_C.tolist() == expected[0, len(tokens_T) :].tolist()
