"""Weights on disk: written as safetensors, read without trust in their content, loaded whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import huggingface_hub
import safetensors
import torch
from torch import Tensor, nn

from minmax_entropy.hub.untrusted import read_json, read_pickled_state_dict

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# One file, or shards beside an index (the names that huggingface_hub and transformers use).
WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MAX_HEADER_BYTES = 2**24
MAX_LISTED = 40  # keys in an error message
# A weight can be loaded from another one of its kind.
KINDS = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32, torch.float64), "float"),
    **dict.fromkeys((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), "integer"),
    torch.bool: "boolean",
}
KINDS_ON_DISK = {
    **dict.fromkeys(("F16", "BF16", "F32", "F64"), "float"),
    **dict.fromkeys(("U8", "I8", "I16", "I32", "I64"), "integer"),
    "BOOL": "boolean",
}


def write_weights(state: Mapping[str, Tensor], directory: str | Path, max_shard_size: int | str = "5GB") -> None:
    """Write a state dict as `model.safetensors`, or as shards with `model.safetensors.index.json` beside them.

    Args:
        state: tensors by name. Parameters that modules share are written once for each of their names.
        directory: existing directory to write to.
        max_shard_size: bytes, or a string such as "5GB".

    Raises:
        ValueError: a tensor holds NaN or infinite values, with which it would not load.
    """
    bad = [key for key, value in state.items() if not _is_finite(value)]
    if bad:
        raise ValueError(f"NaN or infinite values are not saved, they are in {_listed(bad)}")
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    huggingface_hub.save_torch_state_dict(copies, directory, max_shard_size=max_shard_size)


class SavedWeights(Mapping[str, Tensor]):
    """Tensors of safetensors files, read one by one on access; shapes are known from the headers.

    Args:
        files: the `.safetensors` files; each name must be in only one of them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged (its header is checked against its size), or a name is in two of them.
    """

    def __init__(self, files: Collection[str | Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, str] = {}
        self._files = {}
        for path in map(Path, files):
            shapes, kinds, opened = _open(path)
            twice = shapes.keys() & self.shapes.keys()
            if twice:
                raise ValueError(f"{path} holds tensors that another file holds as well: {_listed(sorted(twice))}")
            self.shapes.update(shapes)
            self.kinds.update(kinds)
            self._files.update(dict.fromkeys(shapes, opened))

    def __getitem__(self, key: str) -> Tensor:
        return self._files[key].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _open(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str], safetensors.safe_open]:
    """Return shapes and kinds by name, and the open file."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {header} bytes, which no header has")
        opened = safetensors.safe_open(path, framework="pt")
        slices = {key: opened.get_slice(key) for key in opened.keys()}
        shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
        kinds = {key: KINDS_ON_DISK.get(part.get_dtype(), part.get_dtype()) for key, part in slices.items()}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as weights: {error}") from error
    return shapes, kinds, opened


def weight_files(directory: str | Path) -> list[Path]:
    """Return the safetensors files of a saved model: `model.safetensors`, or the shards that the index names.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the index is damaged.
    """
    directory = Path(directory)
    if (directory / WEIGHTS_NAME).is_file():
        return [directory / WEIGHTS_NAME]
    if (directory / INDEX_NAME).is_file():
        return [directory / name for name in shard_names(directory / INDEX_NAME)]
    pickles = "; pickled weights are not read" if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) else ""
    raise FileNotFoundError(f"no weights at {directory / WEIGHTS_NAME}, and no {INDEX_NAME}{pickles}")


def shard_names(index: str | Path) -> list[str]:
    """Return the names of the shards in an index; each must be a plain name, so that no file outside its directory is
    read.

    Raises:
        ValueError: the index is damaged, or names a file of another kind or place.
    """
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f"{index} is not an index of weights: it has no weight_map of names to files")
    names = list(dict.fromkeys(map(str, places.values())))
    for name in names:
        if not WEIGHT_FILES.fullmatch(name) or name.endswith(".json"):
            raise ValueError(
                f"{index} names {name!r:.80}; a shard is model-NNNNN-of-NNNNN.safetensors, beside the index"
            )
    return sorted(names)


def read_state_dict(path: str | Path) -> Mapping[str, Tensor]:
    """Read the tensors of a `.safetensors` file, or of a `torch.save` file (with `weights_only=True`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds something other than tensors by name.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a directory, weights are a file; a saved model is local-dir:{path}")
    if path.suffix == ".safetensors":
        return SavedWeights([path])
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return read_pickled_state_dict(path)


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor], source: str, fresh: Collection[str] = ()) -> None:
    """Load a state dict if all of it fits; otherwise raise an error that lists every key that does not.

    Args:
        model: the model to load into.
        state: tensors by name.
        source: origin of the tensors, for the error messages.
        fresh: keys that are not loaded.

    Raises:
        ValueError: keys are missing, left over, of another shape, or hold NaN or infinite values.
    """
    check_fit(model, state, source, fresh)
    check_finite(state, source, fresh)
    model.load_state_dict({key: value for key, value in state.items() if key not in fresh}, strict=False)


def check_fit(model: nn.Module, state: Mapping[str, Tensor], source: str, fresh: Collection[str] = ()) -> None:
    """Check that names, shapes and kinds of numbers fit (of `SavedWeights` without reading a tensor).

    Args:
        model: the model, on any device, including "meta".
        state: tensors by name.
        source: origin of the tensors.
        fresh: keys of the model that are not loaded, whatever the state holds for them.

    Raises:
        ValueError: keys are missing, left over, of another shape or another kind of numbers; the message lists them.
    """
    own = model.state_dict()
    shapes, own_shapes = shapes_of(state), shapes_of(own)
    kinds, own_kinds = _kinds_of(state), _kinds_of(own)
    problems = [f"missing {key}" for key in own if key not in shapes and key not in fresh]
    problems += [f"left over {key}" for key in shapes if key not in own and key not in fresh]
    both = [key for key in own if key in shapes and key not in fresh]
    problems += [
        f"{key} is {shapes[key]}, the model has {own_shapes[key]}" for key in both if shapes[key] != own_shapes[key]
    ]
    problems += [
        f"{key} is of {kinds[key]} numbers, the model's of {own_kinds[key]}"
        for key in both
        if kinds[key] != own_kinds[key]
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model ({len(problems)} keys):\n  {_listed(problems, chr(10))}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name, without reading a tensor of `SavedWeights`."""
    return state.shapes if isinstance(state, SavedWeights) else {key: tuple(v.shape) for key, v in state.items()}


def _kinds_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    if isinstance(state, SavedWeights):
        return state.kinds
    return {key: KINDS.get(value.dtype, str(value.dtype)) for key, value in state.items()}


def check_finite(state: Mapping[str, Tensor], source: str, fresh: Collection[str] = ()) -> None:
    """Refuse NaN, infinite values and negative variances; tensors are read one by one.

    Raises:
        ValueError: a tensor holds them; the message lists the keys.
    """
    bad = [key for key in state if key not in fresh and not _is_finite(state[key])]
    if bad:
        raise ValueError(f"{source} holds NaN or infinite values in {_listed(bad)}")
    names = (key for key in state if key.endswith("running_var") and key not in fresh)
    negative = [key for key in names if bool((state[key] < 0).any())]
    if negative:
        raise ValueError(f"{source} holds negative variances in {_listed(negative)}")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, also as float32 if that has less range."""
    if not tensor.dtype.is_floating_point:
        return True
    return bool(torch.isfinite(tensor.float() if tensor.dtype == torch.float64 else tensor).all())


def _listed(items: list[str], separator: str = ",") -> str:
    space = "\n  " if separator == "\n" else ", "
    more = f"{space}... and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return space.join(items[:MAX_LISTED]) + more
