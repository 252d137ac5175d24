"""Golden data (`tests/golden/README.md`): load a set, build the model of a case, compare what it computes."""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minmax_entropy as mme

BUNDLED = Path(__file__).parent / "golden"
DIRECTORY = Path(os.environ.get("MINMAX_ENTROPY_GOLDEN", BUNDLED))
IS_BUNDLED = DIRECTORY.resolve() == BUNDLED.resolve()

# Relative tolerances of a float64 run, by the precision that the array was stored in.
STORED_TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-7}
# A float32 run may be this many times further off than the authors' own float32 run was.
YARDSTICK_FACTOR = 10
# ... but need not be closer than this share of the array's scale. Gradients jump where rounding turns a single ReLU on
# or off, and the weights at the end have taken steps along them; the third is for all other arrays.
FLOAT32_FLOORS = {"grad": 0.05, "final_": 1e-3, "": 16 * float(np.finfo(np.float32).eps)}
SUBSAMPLE = 256

# Networks by the manifest's `block`: model name, class of blocks, blocks per stage (None: the case says).
NETWORKS = {
    "basic": ("wsl_resnet18", "basic", None),
    "bottleneck": ("wsl_resnet50", "bottleneck", None),
    "resnet18": ("wsl_resnet18", "basic", [2, 2, 2, 2]),
    "resnet50": ("wsl_resnet50s", "bottleneck", [3, 4, 6, 3]),
    "resnet101": ("wsl_resnet101s", "bottleneck", [3, 4, 23, 3]),
}


class Case(Mapping):
    """Arrays of one case by name (read on access), and its settings in the manifest."""

    def __init__(self, name: str, settings: dict, yardstick: dict[str, float]) -> None:
        self.name, self.settings, self.yardstick = name, settings, yardstick
        self._links = settings.get("links", {})  # array -> [case, array]: the bundled set stores equal inputs once
        self._file = _open(name)

    def __getitem__(self, key: str) -> np.ndarray:
        if key in self._links:
            case, array = self._links[key]
            return _open(case)[array]
        return self._file[key]

    def __iter__(self):
        yield from self._file.files
        yield from self._links

    def __len__(self) -> int:
        return len(self._file.files) + len(self._links)


@functools.lru_cache(maxsize=2)
def _open(name: str) -> Mapping[str, np.ndarray]:
    return np.load(DIRECTORY / f"{name}.npz")


@functools.cache
def manifest() -> dict:
    path = DIRECTORY / "manifest.json"
    return json.loads(path.read_text()) if path.is_file() else {"cases": {}}


def names(kind: str) -> list[str]:
    """Names of the cases of a kind: "forward", "train", "units" or "eval"."""
    return [name for name, settings in manifest()["cases"].items() if settings["kind"] == kind]


def load(name: str) -> Case:
    return Case(name, manifest()["cases"][name], manifest().get("fp64_yardstick", {}).get(name, {}))


# Inputs, weights and the model.


def network_input(pixels: np.ndarray, dtype: torch.dtype) -> Tensor:
    """uint8 to the normalized input, computed in float32."""
    return ((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5).to(dtype)


def reference_shapes(block: str, layers: list[int] | None, classes: int, modalities: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the authors' network by their keys; scalars (batch counters) have the shape ()."""
    _, kind, stages = NETWORKS[block]
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(key: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes[f"{key}.weight"] = (outputs, inputs, kernel, kernel)
        shapes.update({f"{norm}.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    convolution("conv1", "bn1", 64, 3, 3)
    convolution("conv2", "bn2", 64, 64, 3)
    convolution("conv3", "bn3", 128, 64, 3)
    inputs = 128
    for stage, count in enumerate(layers or stages):
        width = 64 * 2**stage
        outputs = width if kind == "basic" else 4 * width
        kernels = [(width, 3), (width, 3)] if kind == "basic" else [(width, 1), (width, 3), (outputs, 1)]
        for index in range(count):
            prefix, channels = f"layer{stage + 1}.{index}", inputs
            for i, (out, kernel) in enumerate(kernels, 1):
                convolution(f"{prefix}.conv{i}", f"{prefix}.bn{i}", out, channels, kernel)
                channels = out
            if index == 0:
                convolution(f"{prefix}.downsample.0", f"{prefix}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    for head in ("headseg", "cl32"):
        shapes[f"{head}.to_modalities.weight"] = (classes * modalities, inputs, 1, 1)
        shapes[f"{head}.to_modalities.bias"] = (classes * modalities,)
    return shapes


def _weight(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The rule that the weights of every case follow; it keeps activations in a range where rounding stays small."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    gain = 6
    z = np.random.RandomState(zlib.crc32(f"{seed}|{key}".encode())).standard_normal(shape)
    if "to_modalities" in key:
        value = z * 2 / np.sqrt(shape[1]) if key.endswith("weight") else 0.1 * z
    elif len(shape) == 4:
        value = z * gain * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("running_mean"):
        value = 0.1 * gain * z
    elif key.endswith("running_var"):
        value = 3 * gain**2 * np.exp(0.2 * z)
    else:
        value = 0.1 * z + (1 if key.endswith("weight") else 0)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def reference_state(settings: dict) -> dict[str, Tensor]:
    """A checkpoint in the authors' layout, with the mask's settings as scalars."""
    shapes = reference_shapes(settings["block"], settings.get("layers"), settings["C"], settings["M"])
    state = {key: _weight(key, shape, settings["weight_seed"]) for key, shape in shapes.items()}
    return state | {"sigma": torch.tensor(float(settings["sigma"])), "w": torch.tensor(float(settings["w"]))}


def create(settings: dict, size: tuple[int, int] | None = None, **kwargs) -> mme.WSLModel:
    """The untrained model of a case, `preset="reference"`.

    Args:
        settings: the case's part of the manifest.
        size: of the images, needed where the case scales height and width differently.
    """
    name, _, stages = NETWORKS[settings["block"]]
    network = dict(stem_width=64, stem_type="deep")
    if stages is None:
        network["layers"] = settings["layers"]
    head = dict(name="wildcat", modalities=settings["M"], kmax=settings["kmax"])  # kmin and alpha have no effect
    height, width = settings["scale"]
    scale = height if height == width else (int(size[0] * height), int(size[1] * width))
    return mme.create_model(
        name,
        num_classes=settings["C"],
        preset="reference",
        localizer=head,
        classifier=head,
        classifier_scale=scale,
        **network,
        **kwargs,
    )


@functools.lru_cache(maxsize=1)
def _cached_state(settings: str) -> dict[str, Tensor]:
    return reference_state(json.loads(settings))


def build(settings: dict, dtype: torch.dtype, size: tuple[int, int] | None = None, **kwargs) -> mme.WSLModel:
    """The model of a case with its weights."""
    relevant = ("block", "layers", "C", "M", "weight_seed", "sigma", "w")
    state = _cached_state(json.dumps({key: settings.get(key) for key in relevant}))
    return mme.load_reference_checkpoint(create(settings, size, **kwargs), state).to(dtype)


# Comparison.


def subsample(values: np.ndarray) -> np.ndarray:
    flat = values.ravel()
    if flat.size <= SUBSAMPLE:
        return flat
    return flat[np.linspace(0, flat.size - 1, SUBSAMPLE).astype(np.int64)]


def statistics(values: np.ndarray) -> np.ndarray:
    """Sum, L2 norm, largest and mean absolute value."""
    flat = values.ravel().astype(np.float64)
    size = np.abs(flat)
    return np.array([flat.sum(), np.sqrt((flat**2).sum()), size.max(), size.mean()])


def _per_sample(reduce: str, values: np.ndarray) -> np.ndarray:
    return getattr(values, reduce)(axis=(-3, -2, -1))


# Arrays whose entries are quantities of their own, each with its own scale.
ELEMENTWISE = ("__loss", "grad_norms")
# Ending of an array's name -> how it follows from the quantity of the name before it.
ENDINGS = {
    "__sub": subsample,
    "__stats": statistics,
    "_s8": lambda values: values[..., ::8, ::8],
    "_s16": lambda values: values[..., ::16, ::16],
    "_last": lambda values: values[-1],
    "_sample_mean": functools.partial(_per_sample, "mean"),
    "_min": functools.partial(_per_sample, "min"),
    "_max": functools.partial(_per_sample, "max"),
    "_mean": functools.partial(_per_sample, "mean"),
}
# The same for names with a parameter's key at their end.
PREFIXES = {
    "gradsub__": ("grad__", subsample),
    "final_sub__": ("final__", subsample),
    "final_stats__": ("final__", statistics),
    "final_full__": ("final__", np.asarray),
    "final_cnt__": ("final__", np.asarray),
}


def origin(name: str, computed: Mapping[str, np.ndarray]) -> tuple[str, Callable[[np.ndarray], np.ndarray]] | None:
    """The computed quantity, and the function of it, that an array holds; None where nothing computed belongs to it."""
    if name in computed:
        return name, np.asarray
    for prefix, (plain, function) in PREFIXES.items():
        base = name.replace(prefix, plain, 1)
        if prefix in name and base in computed:
            return base, function
    for ending, function in ENDINGS.items():
        base = name.removesuffix(ending)
        if name.endswith(ending) and base in computed:
            return base, function
    return None


class Comparison:
    """Compares computed quantities with the arrays of a case and collects what deviates; `finish` asserts.

    Deviations are relative to the largest absolute value of the array, since maps, gradients and weights have entries
    near 0. The four numbers of `__stats` each have a scale of their own: the sum that of the absolute values' sum, the
    others themselves. Where the reference is NaN (it pools no position of a small map) the value must be finite.
    """

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.failures: list[str] = []
        self.errors: dict[str, float] = {}  # array -> deviation over its scale

    def arrays(self, computed: Mapping[str, Tensor | np.ndarray | float]) -> None:
        """Compare every array of the case that follows from the computed quantities."""
        computed = {name: _numpy(value) for name, value in computed.items()}
        for name in self.case:
            if found := origin(name, computed):
                base, function = found
                actual, expected = function(computed[base]), self.case[name]
                scale = np.abs(np.nan_to_num(expected)) if expected.dtype.kind == "f" else None
                if function is statistics:
                    scale[0] = np.abs(computed[base]).sum()
                elif scale is not None and not name.endswith(ELEMENTWISE):
                    scale = scale.max(initial=0.0)
                self._array(name, actual, expected, scale)

    def _array(self, name: str, actual: np.ndarray, expected: np.ndarray, scale: np.ndarray | float | None) -> None:
        self.errors[name] = 0.0
        if actual.shape != expected.shape:
            self.failures.append(f"{name}: shape {actual.shape}, expected {expected.shape}")
        elif scale is None:
            if not np.array_equal(actual, expected):
                self.failures.append(f"{name}: {actual.tolist()}, expected {expected.tolist()}")
        elif not np.isfinite(actual).all():
            self.failures.append(f"{name}: not finite")
        else:
            deviation = np.where(np.isnan(expected), 0.0, np.abs(actual - expected.astype(np.float64)))
            self.errors[name] = float(np.max(deviation / np.where(scale > 0, scale, 1.0), initial=0.0))
            limit = self._limit(name, scale)
            if np.any(deviation > limit):
                worst = float(deviation.max())
                self.failures.append(
                    f"{name}: off by {worst:.2g} of scale {np.max(scale):.2g}, limit {np.max(limit):.2g}"
                )

    def _limit(self, name: str, scale: np.ndarray | float) -> np.ndarray | float:
        """Deviation that is allowed."""
        if self.dtype == torch.float64:
            return STORED_TOLERANCE[self.case[name].dtype] * scale
        floor = next(share for part, share in FLOAT32_FLOORS.items() if part in name)
        return np.maximum(self._noise(name), floor * scale)

    def _noise(self, name: str) -> float:
        """Deviation that float32 rounding may cause, from that of the authors' own float32 run."""
        noise = YARDSTICK_FACTOR * (self.case.yardstick.get(name) or 0.0)
        if "loss" in name:
            # One loss may be close by luck; it moves by at most twice what its scores move.
            step = name.rpartition("__")[0]
            scores = [array for array in self.case.yardstick if array.startswith(step) and "scores" in array]
            noise = max(noise, 2 * sum(self.case.yardstick[array] or 0.0 for array in scores))
        return noise

    def finish(self, inputs: tuple[str, ...] = ()) -> None:
        """Fail with all that deviates. Of the bundled set, every array but the inputs must have been compared."""
        if IS_BUNDLED:
            left = [name for name in self.case if name not in self.errors and not name.endswith(inputs)]
            self.failures += [f"{name}: nothing was compared with it" for name in left]
        assert not self.failures, f"{self.case.name}, {len(self.failures)} deviations:\n" + "\n".join(self.failures)


def _numpy(value: Tensor | np.ndarray | float) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
