"""Detection of parameters that do not contribute to a module's output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from minmax_entropy._modes import in_evaluation
from minmax_entropy.backbones.sizes import Size

# Layers that torch splits into many small operations on the meta device, so slowly that a real pass is faster.
SLOW_ON_META = (nn.LSTM, nn.GRU, nn.RNN)


def unused_parameters(
    module: nn.Module, in_chans: int, size: Size, run: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, list[str]]:
    """Find unused parameters: run `module` on a blank image, on the meta device if possible, and trace its gradients.

    Args:
        module: maps `[B, C, H, W]` to a tensor.
        in_chans: channels C.
        size: `(height, width)`.
        run: function called with the image in place of `module` itself.

    Returns:
        The output (on the meta device: a shape without values), and the sorted names of the parameters that require a
        gradient but that none reaches.

    Raises:
        Whatever the module raises on that image.
    """
    with in_evaluation(module), torch.inference_mode(False), torch.enable_grad():
        return _unused(module, in_chans, size, run or module)


def runs_without_values(module: nn.Module, in_chans: int, size: Size, run: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a blank image of a size passes on the meta device; True where testing it would take minutes.

    Args: as in `unused_parameters`.
    """
    if _is_slow(module):
        return True
    dtype = next(module.parameters()).dtype
    try:
        with in_evaluation(module), _without_values(module), torch.inference_mode(False), torch.no_grad():
            run(torch.empty(1, in_chans, *size, device="meta", dtype=dtype))
    except Exception:  # of any kind: it does not pass
        return False
    return True


def _is_slow(module: nn.Module) -> bool:
    return any(isinstance(part, SLOW_ON_META) for part in module.modules())


def _unused(module: nn.Module, in_chans: int, size: Size, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[str]]:
    example = next(module.parameters(), torch.empty(()))
    if not (example.is_meta or _is_slow(module)):
        try:
            with _without_values(module):
                return _trace(module, run, torch.empty(1, in_chans, *size, device="meta", dtype=example.dtype))
        except Exception:  # of any kind, in any module; unless the device is the cause, it is raised again below
            pass
    return _trace(module, run, torch.zeros(1, in_chans, *size, device=example.device, dtype=example.dtype))


def _trace(module: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> tuple[Tensor, list[str]]:
    result = run(image)
    if not isinstance(result, Tensor):
        return result, []
    used = _leaves(result)
    asking = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return result.detach(), sorted(name for name, parameter in asking.items() if id(parameter) not in used)


@contextlib.contextmanager
def _without_values(module: nn.Module) -> Iterator[None]:
    """Put parameters and buffers on the meta device in this block.

    `torch.func.functional_call` would not work: where a module is part of several others (coat), it does not restore
    the parameters.
    """
    parts = list(module.modules())
    saved = [(tensors, dict(tensors)) for part in parts for tensors in (part._parameters, part._buffers)]
    replaced: dict[int, Tensor] = {}
    try:
        for tensors, own in saved:
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in replaced:
                    empty = torch.empty_like(tensor, device="meta")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = replaced[id(tensor)]
        yield
    finally:
        for tensors, own in saved:
            tensors.update(own)


def _leaves(result: Tensor) -> set[int]:
    """Return the ids of the tensors that a gradient of `result` would reach."""
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
