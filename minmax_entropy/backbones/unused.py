"""Parameters that take no part in a module's result."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

Size = tuple[int, int]

# What torch takes apart into many small operations on the meta device, so slowly that a real pass is quicker.
SLOW_ON_META = (nn.LSTM, nn.GRU, nn.RNN)


def unused_parameters(module: nn.Module, in_chans: int, size: Size) -> tuple[Tensor, list[str]]:
    """Run `module` on one blank image, without values where that is possible, and follow the graph of its gradient.

    Args:
        module: maps `[B, C, H, W]` to a tensor.
        in_chans: channels C.
        size: `(height, width)`.

    Returns:
        What the module gives (on the meta device: a shape without values), and the names of the parameters that no
        gradient reaches, sorted.

    Raises:
        Whatever the module raises on that image.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _unused(module, in_chans, size)
    finally:
        for part, mode in modes.items():
            part.training = mode


def _unused(module: nn.Module, in_chans: int, size: Size) -> tuple[Tensor, list[str]]:
    example = next(module.parameters())
    if example.is_meta or not any(isinstance(part, SLOW_ON_META) for part in module.modules()):
        try:
            return _trace(module, torch.empty(1, in_chans, *size, device="meta", dtype=example.dtype), "meta")
        except (RuntimeError, NotImplementedError, AssertionError):
            if example.is_meta:
                raise
    blank = torch.zeros(1, in_chans, *size, device=example.device, dtype=example.dtype)
    return _trace(module, blank, None)


def _trace(module: nn.Module, image: Tensor, device: str | None) -> tuple[Tensor, list[str]]:
    """Every parameter is replaced by one that asks for a gradient, so that the module's own are left alone."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())
    if device is not None:
        parameters = {name: torch.empty_like(tensor, device=device) for name, tensor in parameters.items()}
        buffers = {name: torch.empty_like(tensor, device=device) for name, tensor in buffers.items()}
    parameters = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
    result = functional_call(module, {**parameters, **buffers}, (image,))
    used = _leaves(result)
    return result.detach(), sorted(name for name, tensor in parameters.items() if id(tensor) not in used)


def _leaves(result: Tensor) -> set[int]:
    """Identities of the tensors that a gradient of `result` would reach."""
    leaves, seen, nodes = set(), set(), [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes.extend(following for following, _ in node.next_functions)
    return leaves
