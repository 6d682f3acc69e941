import pytest
import torch

from tandem.kernels.experts import (
    combine,
    dispatch,
    grouped_linear,
    permute,
    router_logits,
    sort_by_expert,
)

T, K, E, D, O = 37, 3, 5, 16, 24


def _experts() -> torch.Tensor:
    """Choices of which none falls on expert 3."""
    scores_TE = torch.rand(T, E)
    scores_TE[:, 3] = -1
    return scores_TE.topk(K, dim=-1).indices


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2e-2


def _near(found, wanted, dtype):
    scale = wanted.float().abs().max()
    assert (found.float() - wanted.float()).abs().max() < _tolerance(dtype) * scale
    assert found.dtype == dtype


def test_rows_are_sorted_by_expert_and_then_by_token():
    experts_Tk = torch.tensor([[2, 0], [0, 2], [4, 2]])
    sorting = sort_by_expert(experts_Tk, 5)
    assert sorting.order_M.tolist() == [1, 2, 0, 3, 5, 4]
    assert sorting.rows_Tk.tolist() == [[2, 0], [1, 3], [5, 4]]
    assert sorting.ends_E.tolist() == [2, 2, 5, 5, 6]
    assert sorting.ends_E.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_expert_multiplies_its_own_rows(dtype):
    experts_Tk = _experts()
    sorting = sort_by_expert(experts_Tk, E)
    rows_MD = torch.randn(T * K, D).to(dtype).requires_grad_()
    weight_EOD = torch.randn(E, O, D).to(dtype).requires_grad_()
    grad_MO = torch.randn(T * K, O).to(dtype)
    found = grouped_linear(rows_MD, weight_EOD, sorting.ends_E)
    found.backward(grad_MO)

    rows, weight = (x.detach().float().requires_grad_() for x in (rows_MD, weight_EOD))
    of_M = experts_Tk.flatten()[sorting.order_M]
    wanted = torch.einsum("md,mod->mo", rows, weight[of_M])
    wanted.backward(grad_MO.float())
    _near(found, wanted, dtype)
    _near(rows_MD.grad, rows.grad, dtype)
    _near(weight_EOD.grad, weight.grad, dtype)
    assert not weight_EOD.grad[3].any() and weight_EOD.grad[4].any()


def test_experts_without_any_row_cost_nothing():
    weight_EOD = torch.randn(E, O, D, requires_grad=True)
    rows_MD = torch.zeros(0, D, requires_grad=True)
    found = grouped_linear(rows_MD, weight_EOD, torch.zeros(E, dtype=torch.int32))
    found.sum().backward()
    assert found.shape == (0, O) and rows_MD.grad.shape == (0, D)
    assert not weight_EOD.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_go_to_their_experts_and_come_back_weighed(dtype):
    experts_Tk = _experts()
    sorting = sort_by_expert(experts_Tk, E)
    x_TD = torch.randn(T, D).to(dtype).requires_grad_()
    weights_Tk = torch.rand(T, K, requires_grad=True)
    factor_ED, grad_TD = torch.randn(E, D), torch.randn(T, D).to(dtype)
    of_M = experts_Tk.flatten()[sorting.order_M]
    rows_MD = dispatch(x_TD, sorting)
    found = combine(rows_MD * factor_ED[of_M].to(dtype), weights_Tk, sorting)
    found.backward(grad_TD)

    x, weights = x_TD.detach().float().requires_grad_(), weights_Tk.detach().requires_grad_()
    wanted = (x[:, None] * factor_ED[experts_Tk] * weights[..., None]).sum(1)
    wanted.backward(grad_TD.float())
    _near(found, wanted, dtype)
    _near(x_TD.grad, x.grad, dtype)
    assert (weights_Tk.grad - weights.grad).abs().max() < _tolerance(dtype) * D
    assert weights_Tk.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_a_token_do_not_depend_on_the_others(dtype):
    experts_Tk = _experts()
    x_TD, weight_EOD = torch.randn(T, D).to(dtype), torch.randn(E, D, D).to(dtype)
    weights_Tk = torch.rand(T, K)

    def run(tokens):
        sorting = sort_by_expert(experts_Tk[tokens], E)
        rows_MD = grouped_linear(dispatch(x_TD[tokens], sorting), weight_EOD, sorting.ends_E)
        return combine(rows_MD, weights_Tk[tokens], sorting)

    whole = run(torch.arange(T))
    for tokens in (torch.arange(1), torch.arange(5, 20), torch.tensor([36, 2])):
        assert run(tokens).equal(whole[tokens])


def test_a_permutation_sends_its_gradient_back():
    order_M = torch.randperm(9)
    rows_MD = torch.randn(9, 4, requires_grad=True)
    grad_MD = torch.randn(9, 4)
    found = permute(rows_MD, order_M)
    found.backward(grad_MD)
    assert found.equal(rows_MD[order_M])
    assert rows_MD.grad[order_M].equal(grad_MD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routers_count_in_float32(dtype):
    x_TD, weight_ED = torch.randn(T, 64).to(dtype), torch.randn(E, 64).to(dtype)
    found = router_logits(x_TD, weight_ED)
    assert found.dtype == torch.float32
    assert (found - x_TD.double() @ weight_ED.double().T).abs().max() < 1e-4
    assert router_logits(x_TD[3:4], weight_ED).equal(found[3:4])


@pytest.mark.gpu
def test_nothing_waits_for_the_device(device):
    if device.type != "cuda":
        pytest.skip("there is nothing to wait for on a CPU")
    experts_Tk, x_TD = _experts(), torch.randn(T, D, dtype=torch.bfloat16, requires_grad=True)
    weight_EOD = torch.randn(E, D, D, dtype=torch.bfloat16, requires_grad=True)
    weights_Tk = torch.rand(T, K)

    def run():
        sorting = sort_by_expert(experts_Tk, E)
        rows_MD = grouped_linear(dispatch(x_TD, sorting), weight_EOD, sorting.ends_E)
        combine(rows_MD, weights_Tk, sorting).backward(torch.ones_like(x_TD))

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
