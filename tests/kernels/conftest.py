import pytest
import torch


@pytest.fixture(autouse=True, params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Every claim about a kernel holds on each device: new tensors of a test lie there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    with torch.device(request.param):
        yield torch.device(request.param)


@pytest.fixture(autouse=True)
def _one_thread():
    """MKL's bits depend on where a thread's buffers lie, so claims about bits need one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
