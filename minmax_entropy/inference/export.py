"""Models for other runtimes: `torch.export` programs and ONNX files of images to logits and mask."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minmax_entropy._checks import check_count, check_flag
from minmax_entropy._extras import require
from minmax_entropy._modes import in_evaluation
from minmax_entropy._symbolic import LARGEST_DENOMINATOR
from minmax_entropy.backbones.sizes import Size, as_pair
from minmax_entropy.model import MinMaxEntropy
from minmax_entropy.version import __version__

if TYPE_CHECKING:
    import onnxruntime
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

_logger = logging.getLogger(__name__)

# Heights and widths that a program is tried with, in steps above its smallest: squares, odd and even, both ways round.
TRIED = ((0, 0), (0, 1), (2, 1), (3, 6), (8, 5))
# Attributes of timm's attention over windows: Swin and DaViT; Twins; MobileViT.
PARTITIONS = ("window_size", "ws", "patch_area")
METADATA_NAME = "minmax_entropy.json"  # among the extra files of a `.pt2`


class ExportError(RuntimeError):
    """An exported program does not compute what the model computes."""


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A program and the images that it takes: of `size`, and of all larger multiples of `step` from `smallest` on."""

    program: ExportedProgram
    size: Size
    batch: int | None
    step: Size | None = None
    smallest: Size | None = None

    def example_shapes(self) -> list[tuple[int, int, int]]:
        """Return batch, height and width of images that differ from one another where the program allows it."""
        shapes = [(self.batch or 1, *self.size)]
        if self.step is not None:
            shapes.append((self.batch or 3, self.smallest[0], self.smallest[1] + self.step[1]))
        elif self.batch is None:
            shapes.append((3, *self.size))
        return shapes


def export_program(
    model: MinMaxEntropy,
    *,
    img_size: int | Size | None = None,
    batch: int | None = None,
    dynamic_size: bool | None = None,
) -> ExportedProgram:
    """Trace a call of a model in evaluation mode: one pass for the mask, without further views. The program holds the
    weights; the model stays unchanged.

    Args:
        model: any model of the library. With `mask_normalization="batch"`, the program normalizes over the batch too.
        img_size: `(height, width)` of the images in pixels, or a number for both; by default that of the model's
            `data_config`. With a dynamic size it must be among those that the program takes.
        batch: number of images in a batch; None takes any number.
        dynamic_size: None takes images of other sizes where that works without minutes of tracing (which models with
            windows take: Swin, Twins, MobileViT), and logs a line where it doesn't. True insists on it, False does
            without. Sides are then multiples of the backbone's step, or of a coarser one where only that holds, and
            large enough for two positions each way in the feature maps of localizer and classifier.

    Returns:
        A program on the model's device: images `[B, C, H, W]`, normalized with `data_config`'s mean and std, to
        `(logits [B, K], mask [B, 1, H, W])`, as `model(images)` returns them.

    Raises:
        ValueError: an image size that the backbone does not take; with `dynamic_size=True`, a model that can't be
            exported for images of other sizes.
        TypeError: an argument of another kind.
    """
    return _trace(model, img_size, batch, dynamic_size).program


def save_program(
    model: MinMaxEntropy,
    path: str | Path,
    *,
    img_size: int | Size | None = None,
    batch: int | None = None,
    dynamic_size: bool | None = None,
) -> Path:
    """Write `export_program`'s result to a file (`.pt2`) for `torch.export.load`, which needs no minmax_entropy.

    The file is written under a temporary name and then renamed. Class names, mean, std, ... are JSON in its extra file
    `METADATA_NAME`: `torch.export.load(path, extra_files=(found := {METADATA_NAME: ""}))`.

    Args:
        model, img_size, batch, dynamic_size: see `export_program`.
        path: where to; its parent is made, and a file that is there is replaced.

    Returns:
        The path.

    Raises:
        ValueError, TypeError: as `export_program`.
        IsADirectoryError: the path is a directory.
    """
    path = _target(path)
    traced = _trace(model, img_size, batch, dynamic_size)
    with _staged(path) as staging:
        torch.export.save(traced.program, staging, extra_files={METADATA_NAME: json.dumps(_metadata(model, traced))})
    return path


def export_onnx(
    model: MinMaxEntropy,
    path: str | Path,
    *,
    img_size: int | Size | None = None,
    batch: int | None = None,
    dynamic_size: bool | None = None,
    check: bool = True,
) -> Path:
    """Write an ONNX file with an input `images` and the outputs `logits` and `mask`, shaped as in `export_program`.

    The file is written under a temporary name, compared with the model, and then renamed: it is whole or not there.
    Weights of more than 1.5 GB go to a file `<name>.data` beside it, which is renamed first, and which the file names:
    move both together, without renaming them. Metadata (`metadata_props`) are JSON: `class_names`, `task`,
    `empty_classes` and `min_probability` (where the mask is to be left empty), `mean`, `std`, `input_size` `[C, H, W]`,
    `size_step` and `smallest_size` `[H, W]` (null for a fixed size), and `minmax_entropy`, the version.

    Args:
        model, img_size, batch, dynamic_size: see `export_program`.
        path: where to; its parent is made, and a file that is there is replaced.
        check: run the file with onnxruntime on random images, of another number and size too where they are dynamic,
            and compare with the model.

    Returns:
        The path.

    Raises:
        ImportError: the packages of the extra `export` are missing.
        ExportError: the file gives other logits or masks than the model; nothing is written then.
        ValueError, TypeError: as `export_program`.
        IsADirectoryError: the path is a directory.
    """
    check_flag("check", check)
    for package in ("onnx", "onnxscript", "onnxruntime") if check else ("onnx", "onnxscript"):
        require(package, "export", "an ONNX file")
    path = _target(path)
    traced = _trace(model, img_size, batch, dynamic_size)
    onnx_program = _translate(traced, _metadata(model, traced))
    with _staged(path) as staging:
        onnx_program.save(staging)
        if check:
            _compare(model, staging, traced)
    return path


class _Inference(nn.Module):
    def __init__(self, model: MinMaxEntropy) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images)
        return output.logits, output.mask


def _trace(model: MinMaxEntropy, img_size: int | Size | None, batch: int | None, dynamic_size: bool | None) -> _Traced:
    if not isinstance(model, MinMaxEntropy):
        raise TypeError(f"model must be a WSLModel, got {type(model).__name__}")
    if dynamic_size is not None:
        check_flag("dynamic_size", dynamic_size)
    batch = None if batch is None else check_count("batch", batch)
    size = as_pair(model.data_config["input_size"][-2:] if img_size is None else img_size)
    if not model.backbone.sizes.accepts(*size):
        raise ValueError(
            f"the backbone takes {model.backbone.sizes}, got img_size={size}; the nearest size that works is "
            f"{model.backbone.sizes.nearest(*size)}"
        )
    with in_evaluation(model), torch.no_grad():
        if dynamic_size is not False:
            traced, reason = _trace_other_sizes(model, size, batch, insist=dynamic_size is True)
            if traced is not None:
                return traced
            if dynamic_size:
                raise ValueError(f"this model can't be exported for images of any size: {reason}")
            _logger.info("exported for images of %d x %d only: %s", *size, reason)
        images = _example(model, (batch or 2, *size))
        return _Traced(_export(model, images, batch, (None, None)), size, batch)


def _trace_other_sizes(model: MinMaxEntropy, size: Size, batch: int | None, insist: bool) -> tuple[_Traced | None, str]:
    """Return a program for images of other sizes too, or None and why there is none."""
    steps, reason = _steps(model), f"its backbone takes {model.backbone.sizes}"
    if steps and not insist and any(hasattr(module, name) for module in model.modules() for name in PARTITIONS):
        return None, "its maps are cut into windows, which takes torch.export minutes (dynamic_size=True tries)"
    for step in steps:
        try:
            return _trace_any_size(model, size, batch, step), ""
        except Exception as error:  # of any kind, in anybody's module
            reason = _first_line(error)
            _logger.debug("no export for multiples of %s", step, exc_info=True)
    return None, reason


def _steps(model: MinMaxEntropy) -> list[Size]:
    """Steps of the image size to try: the backbone's, then one that the feature maps divide without a remainder."""
    if model.backbone.sizes.fixed is not None:
        return []
    step, multiple = model.backbone.sizes.step, model.backbone.sizes.multiple
    shares = [Fraction(share).limit_denominator(LARGEST_DENOMINATOR).denominator for share in _shares(model)]
    multiple *= math.lcm(*shares)
    return list(dict.fromkeys((step, (multiple, multiple))))


def _shares(model: MinMaxEntropy) -> list[float]:
    """Sizes of the passes of the backbones that follow from that of the images, as shares of it."""
    follows = model.classifier_decides and isinstance(model.classifier_scale, float)
    return [1.0, model.classifier_scale] if follows else [1.0]


def _trace_any_size(model: MinMaxEntropy, size: Size, batch: int | None, step: Size) -> _Traced:
    smallest = _smallest(model, step)
    if any(side < least or side % each for side, least, each in zip(size, smallest, step, strict=True)):
        steps = "" if step == (1, 1) else f" in steps of {step[0]} x {step[1]}"
        raise ValueError(f"other sizes begin at {smallest[0]} x {smallest[1]}{steps}, got img_size={size}")
    # Height and width differ in the example: what holds for squares only must not be taken for granted.
    images = _example(model, (batch or 2, size[0], size[1] + step[1] * model.backbone.sizes.multiple))
    dims = (_dim(*each) for each in zip(("height", "width"), step, smallest, strict=True))
    traced = _Traced(_export(model, images, batch, tuple(dims)), size, batch, step, smallest)
    _try_sizes(model, traced)
    return traced


def _dim(name: str, step: int, smallest: int) -> torch.export.Dim:
    """Sides from `smallest` on that are multiples of `step`."""
    if step == 1:
        return torch.export.Dim(name, min=smallest)
    return step * torch.export.Dim(f"{name}_steps", min=smallest // step)


def _smallest(model: MinMaxEntropy, step: Size) -> Size:
    """Multiples of `step` whose feature maps have two positions each way: torch.export takes a size of 1 for fixed."""
    sizes = model.backbone.sizes  # those of the classifier's own are the same
    least = math.ceil(max(2 * sizes.stride, sizes.floor) / min(_shares(model)))  # of them, 1 is one
    return tuple(math.ceil(least / each) * each for each in step)


def _export(model: MinMaxEntropy, images: Tensor, batch: int | None, sides: tuple) -> ExportedProgram:
    """Trace for images as the example, of any number where `batch` is None, and with `sides` of `Dim` where given."""
    dims = dict(zip((0, 2, 3), (None if batch else torch.export.Dim("batch", min=1), *sides), strict=True))
    dims = {axis: dim for axis, dim in dims.items() if dim is not None}
    return torch.export.export(_Inference(model), (images,), dynamic_shapes=(dims,))


def _try_sizes(model: MinMaxEntropy, traced: _Traced) -> None:
    """Run a program without values for several sizes: of multiples torch.export proves less than of any size.

    Raises:
        AssertionError: the program takes for granted what does not hold for each of its sizes.
    """
    module = traced.program.module()
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        for counts in TRIED:
            size = (least + n * each for least, n, each in zip(traced.smallest, counts, traced.step, strict=True))
            module(torch.empty(traced.batch or 3, model.in_chans, *size, device=device, dtype=dtype))


def _example(model: MinMaxEntropy, shape: tuple[int, int, int]) -> Tensor:
    """Random images `[B, C, H, W]` of a shape B, H, W, always the same."""
    parameter = next(model.parameters())
    batch, *size = shape
    images = torch.randn(batch, model.in_chans, *size, generator=torch.Generator().manual_seed(0))
    return images.to(parameter.device, parameter.dtype)


def _metadata(model: MinMaxEntropy, traced: _Traced) -> dict:
    return {
        "minmax_entropy": __version__,
        "task": model.task,
        "class_names": model.class_names,
        "empty_classes": model.empty_classes,
        "min_probability": model.min_probability,
        "mean": model.data_config["mean"],
        "std": model.data_config["std"],
        "input_size": (model.in_chans, *traced.size),
        "size_step": traced.step,
        "smallest_size": traced.smallest,
    }


def _translate(traced: _Traced, metadata: dict) -> ONNXProgram:
    names = dict(input_names=["images"], output_names=["logits", "mask"])
    onnx_program = torch.onnx.export(traced.program, **names, dynamo=True, verbose=False)
    graph = onnx_program.model.graph
    batch = "batch" if traced.batch is None else traced.batch
    size = traced.size if traced.step is None else ("height", "width")
    for value, shape in (
        (graph.inputs[0], (batch, metadata["input_size"][0], *size)),
        (graph.outputs[0], (batch, graph.outputs[0].shape[1])),
        (graph.outputs[1], (batch, 1, *size)),
    ):
        value.shape = type(value.shape)(shape)
    onnx_program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    return onnx_program


def _compare(model: MinMaxEntropy, path: Path, traced: _Traced) -> None:
    """Refuse an ONNX file that differs from the model by more than half of the digits that its type has."""
    session = _session(path)
    for shape in traced.example_shapes():
        images = _example(model, shape)
        with in_evaluation(model), torch.no_grad():
            output = model(images)
        found = session.run(["logits", "mask"], {"images": images.cpu().numpy()})
        for name, value in zip(("logits", "mask"), found, strict=True):
            expected = getattr(output, name).cpu()
            tolerance = torch.finfo(images.dtype).eps ** 0.5
            scale = max(1.0, float(expected.abs().max()))
            difference = float((torch.from_numpy(value) - expected).abs().max())
            if value.shape != tuple(expected.shape) or not difference <= tolerance * scale:
                raise ExportError(
                    f"onnxruntime gives another {name} than the model for images of {tuple(images.shape)}: off by "
                    f"{difference:.2g} of {scale:.2g}; nothing was written"
                )


def _session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are about graphs that it could have optimized
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _target(path: str | Path) -> Path:
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, an exported model is a file")
    return path


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """Yield a place for the file and its `.data`, from where both are moved to `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield directory / path.name
        data = f"{path.name}.data"
        if (directory / data).exists():
            os.replace(directory / data, path.with_name(data))
            os.replace(directory / path.name, path)
        else:
            os.replace(directory / path.name, path)
            path.with_name(data).unlink(missing_ok=True)  # of an earlier file
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
