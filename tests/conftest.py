"""Settings of every test."""

import os

# The models are tiny: more threads only wait for each other, badly so on a busy machine. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
