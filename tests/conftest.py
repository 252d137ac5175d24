"""Settings of every test, and images that several files use."""

import os

# The models are tiny: more threads only wait for each other, badly so on a busy machine. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from small import SIZE

from minmax_entropy.data import SyntheticShapes

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="module")
def shapes():
    return SyntheticShapes(length=24, size=SIZE, num_classes=2)
