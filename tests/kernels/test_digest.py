import pytest
import torch

from tandem.kernels.digest import digest_all, tensor_digest


def _bytes(count, seed=0):
    torch.manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64, 1001])
def test_every_single_flipped_bit_changes_the_digest(count):
    tensor = _bytes(count)
    seen = {tensor_digest(tensor)}
    for place in range(0, count, max(1, count // 16)):
        for bit in range(8):
            flipped = tensor.clone()
            flipped[place] ^= 1 << bit
            seen.add(tensor_digest(flipped))
    assert len(seen) == 1 + 8 * len(range(0, count, max(1, count // 16)))


def test_an_exchange_of_two_words_changes_the_digest():
    words = torch.arange(100_000)
    for one, other in ((0, 1), (5, 5 + 2**14), (3, 99_999), (2**15, 2**16)):
        turned = words.clone()
        turned[[one, other]] = words[[other, one]]
        assert tensor_digest(turned) != tensor_digest(words)


def test_digest_depends_on_order_and_on_length():
    tensor = torch.arange(10, dtype=torch.int32)
    assert tensor_digest(tensor) != tensor_digest(tensor.flip(0))
    assert tensor_digest(torch.zeros(4)) != tensor_digest(torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_digest_speaks_of_values_in_logical_order_not_of_strides(dtype):
    tensor = (_bytes(60).view(6, 10) % 2).to(dtype)
    turned = tensor.t().contiguous().t()
    assert tensor_digest(turned) == tensor_digest(tensor)
    assert tensor_digest(tensor[1:, 1:]) == tensor_digest(tensor[1:, 1:].clone())


def test_digest_of_a_view_that_begins_inside_a_word_is_that_of_its_copy():
    tensor = torch.arange(9, dtype=torch.bfloat16)
    assert tensor_digest(tensor[1:]) == tensor_digest(tensor[1:].clone())


def test_digest_is_a_known_function_of_the_bytes():
    # so that a digest written into a checkpoint can be checked by a later version
    assert tensor_digest(torch.arange(5, dtype=torch.int32)) == 12854529668036731221


def test_digest_all_gives_each_name_its_own_digest():
    named = {"a": torch.zeros(3), "b": torch.ones(3), "empty": torch.zeros(0)}
    assert digest_all(named.items()) == {k: tensor_digest(t) for k, t in named.items()}
    assert digest_all([]) == {}
