import pytest
import torch

from tandem.kernels.linear import (
    FEW_ROWS,
    invariant_linear,
    linear,
    sum_products_in_one_order,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "outputs"), [(128, 384), (96, 100), (256, 1024)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_do_not_depend_on_the_number_or_place_of_rows(dtype, width, outputs, threads):
    torch.set_num_threads(threads)
    x, weight = torch.randn(512, width).to(dtype), torch.randn(outputs, width).to(dtype)
    whole = invariant_linear(x, weight)
    for count in (*range(1, 34), 48, 63, 100, 255, 511):
        assert torch.equal(invariant_linear(x[:count], weight), whole[:count]), count
    for start in (1, 3, 17, 100):
        for count in (1, 7, 20, 64):
            rows = slice(start, start + count)
            assert torch.equal(invariant_linear(x[rows].clone(), weight), whole[rows])


def test_it_is_a_linear_layer_with_gradients():
    inputs = [torch.randn(*shape).requires_grad_() for shape in ((3, 8), (5, 8), (5,))]
    found, wanted = invariant_linear(*inputs), torch.nn.functional.linear(*inputs)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("inner", "outputs"), [(2560, 6144), (4096, 2560), (9728, 2560)])
def test_few_rows_have_the_bits_that_they_have_among_many(inner, outputs, device):
    if device.type == "cpu":
        pytest.skip("on the CPU these are torch's own products")
    sum_products_in_one_order()
    x = torch.randn(4096, inner).bfloat16()
    weight = (torch.randn(outputs, inner) / 50).bfloat16()
    whole = torch.nn.functional.linear(x, weight)
    for count in (*range(1, 18), 24, 31, 32, 33, FEW_ROWS, FEW_ROWS + 1, 64, 200):
        assert torch.equal(linear(x[:count], weight), whole[:count]), count
        assert torch.equal(linear(x[7 : 7 + count], weight), whole[7 : 7 + count]), count


def test_a_product_of_few_rows_has_gradients():
    x, weight = torch.randn(3, 128).bfloat16(), torch.randn(64, 128).bfloat16()
    inputs = x.requires_grad_(), weight.requires_grad_()
    for gradient in torch.autograd.grad(linear(*inputs).square().sum(), inputs):
        assert gradient.abs().sum() > 0
