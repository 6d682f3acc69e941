import json

import pytest
import torch

from tandem.checkpoint.hugging_face import save_hugging_face
from tandem.checkpoint.names import to_hugging_face
from tandem.errors import ConfigError
from tandem.train.lora import TARGETS, Adapters

LORA = {"rank": 4, "alpha": 8.0}


def named(trainer):
    return {name: p.detach().clone() for name, p in trainer._model.parts[0].named_parameters()}


def test_adapters_begin_as_nothing_and_change_their_targets_alone(
    make_trainer, make_decoder, make_groups, learn
):
    trainer = make_trainer(lora={**LORA, "targets": ["q_proj", "v_proj", "down_proj"]})
    before = named(trainer)
    assert all(torch.equal(before[n], p) for n, p in make_decoder().named_parameters())
    learn(trainer, make_groups())
    learn(trainer, make_groups(seed=1))
    changed = {name for name, tensor in named(trainer).items() if not before[name].equal(tensor)}
    assert changed == {f"layers.{i}.{name}.weight" for i in range(2) for name in ("qkv", "down")}
    pairs = zip(
        to_hugging_face(trainer._model.parts[0].shape, before.items()),
        to_hugging_face(trainer._model.parts[0].shape, named(trainer).items()),
        strict=True,
    )
    moved = {name for (name, old), (_, new) in pairs if not old.equal(new)}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj", "down_proj"}


def test_the_gradient_of_an_adapter_is_that_of_a_low_rank_term(make_decoder):
    """Against autograd through base + s B A, put into the same decoder."""
    decoder = make_decoder()
    adapters = Adapters(decoder, rank=3, alpha=6.0, targets=TARGETS, seed=0)
    parameters = dict(adapters.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    base = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    adapters.merge()
    layer, tokens = (
        decoder.layers[1],
        torch.randn(7, 32, generator=torch.Generator().manual_seed(1)),
    )
    (layer.gate_up(tokens).sin().sum() + layer.qkv(tokens).cos().sum()).backward()
    free = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}

    def delta(module):
        prefix = f"model.layers.1.{module}"
        b, a = free[f"{prefix}.lora_B.weight"], free[f"{prefix}.lora_A.weight"]
        return 2.0 * b @ a

    def fused(name, modules):
        shape = decoder.shape
        parts = [delta(module) for module in modules]
        if len(parts) == 2:
            whole = torch.stack(parts, dim=1).reshape(-1, 32)
        else:
            sizes = (shape.group_size, 1, 1)
            heads = [p.view(-1, n, shape.head_size, 32) for p, n in zip(parts, sizes, strict=True)]
            whole = torch.cat(heads, dim=1).reshape(-1, 32)
        return base[f"layers.1.{name}.weight"] + whole

    gate_up = fused("gate_up", ["mlp.gate_proj", "mlp.up_proj"])
    qkv = fused("qkv", [f"self_attn.{x}_proj" for x in "qkv"])
    ((tokens @ gate_up.t()).sin().sum() + (tokens @ qkv.t()).cos().sum()).backward()
    checked = 0
    for name, parameter in free.items():
        if parameter.grad is not None:
            assert torch.allclose(parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)
            checked += 1
    assert checked == 10
    assert decoder.embed.weight.grad is None and decoder.layers[1].qkv.weight.grad is None


def test_several_batches_add_up(make_trainer, make_groups, learn):
    rows = [
        learn(make_trainer(lora=LORA, batch=batch), make_groups()).rows[0]
        for batch in ({"max_tokens_per_gpu": 24}, {"max_tokens_per_gpu": 4096})
    ]
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-4)


def test_only_adapters_have_an_optimizer(make_trainer):
    trainer = make_trainer(lora=LORA)
    names = trainer._descent.optimizer.tensors()
    assert all("lora_" in name for name in names if name != "optimizer.step")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_with_adapters_resumes_to_the_same_bits(
    make_trainer, make_decoder, make_groups, learn, tmp_path, dtype
):
    def fresh(seed=0):
        return make_trainer(lora=LORA, decoder=make_decoder(seed=seed, dtype=dtype))

    whole, first, resumed = fresh(), fresh(), fresh(seed=9)
    for seed in range(3):
        learn(whole, make_groups(seed=seed))
    learn(first, make_groups(seed=0))
    first.save(tmp_path, 0, {})
    resumed.load(tmp_path)
    for seed in (1, 2):
        learn(resumed, make_groups(seed=seed))
    assert resumed.state_digest() == whole.state_digest()


def test_learning_with_adapters_makes_good_samples_likelier(make_trainer, make_groups, learn):
    trainer = make_trainer(algo={"loss_type": "sft_loss"}, lora=LORA, optim={"lr": 2e-2})
    losses = [learn(trainer, make_groups(1)).rows[0]["loss"] for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_an_unknown_target_is_refused(make_decoder):
    with pytest.raises(ConfigError, match=r"wqkv: wanted some of q_proj, k_proj"):
        Adapters(make_decoder(), rank=2, alpha=2.0, targets=["wqkv"], seed=0)


def test_peft_reads_a_saved_adapter_and_says_the_same(
    make_trainer, make_decoder, make_groups, learn, tmp_path
):
    from peft import PeftModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = make_decoder().shape
    config = Qwen3Config(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.ffn,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads, head_dim=shape.head_size, rms_norm_eps=shape.eps,
        rope_theta=shape.rope_theta, max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    origin, folder = tmp_path / "origin", tmp_path / "base"
    config.save_pretrained(origin)
    decoder = make_decoder()
    weights = [(name, p.detach()) for name, p in decoder.named_parameters()]
    save_hugging_face(to_hugging_face(shape, weights), folder, origin)
    trainer = make_trainer(
        decoder=decoder, lora={**LORA, "origin": str(folder)}, optim={"lr": 5e-2}
    )
    for seed in range(3):
        learn(trainer, make_groups(seed=seed))
    trainer.save(tmp_path / "run", 7, {})
    saved = tmp_path / "run" / "lora" / "iter_0000007"
    assert json.loads((saved / "adapter_config.json").read_text())["r"] == 4

    base = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(1, 25)[None]
    with torch.no_grad():
        plain = base(tokens).logits[0]
        adapted = PeftModel.from_pretrained(base, saved)(tokens).logits[0]
        merged = merged_logits(trainer, tokens[0])
    assert (adapted - plain).abs().max() > 0.1
    assert torch.allclose(adapted, merged, atol=2e-4)


def merged_logits(trainer, tokens):
    from tandem.kernels.attention import packed_attention

    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)

    def attend(layer, q, k, v):
        return packed_attention(q, k, v, bounds, len(tokens))

    decoder = trainer._model.parts[0]
    return decoder.logits(decoder(tokens, torch.arange(len(tokens)), attend))


def test_adapters_are_drawn_by_seed_and_name_alone(make_decoder):
    def drawn(seed):
        return dict(Adapters(make_decoder(), targets=TARGETS, seed=seed, **LORA).named_parameters())

    one, same, other = drawn(0), drawn(0), drawn(1)
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert (one[name.replace("lora_A", "lora_B")] == 0).all()
