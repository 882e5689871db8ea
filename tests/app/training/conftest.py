"""A data set that most tests of training share, and their threads."""

import pytest
import torch
from training_data import write_voc


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    """A data set in the layout of VOC, which no test changes."""
    return write_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks are slower with more; `poisoned_memory` restores the number."""
    torch.set_num_threads(1)
