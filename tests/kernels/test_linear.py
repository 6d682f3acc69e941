import pytest
import torch

from tandem.kernels.linear import invariant_linear


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
