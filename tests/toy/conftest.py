"""What all tests of the toy share."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the command line does: tensors this small are slower shared between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
