import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """MKL's bits depend on where a thread's buffers lie, so claims about bits need one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
