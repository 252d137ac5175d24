"""Weights on the disk: written as safetensors, read without trust in what they hold, loaded whole or not at all."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import huggingface_hub
import safetensors
import torch
from torch import Tensor, nn

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# One file, or shards beside an index (the names that huggingface_hub and transformers use).
WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MAX_LISTED = 40  # keys in an error message


def write_weights(state: Mapping[str, Tensor], directory: str | Path, max_shard_size: int | str = "5GB") -> None:
    """Write a state dict as `model.safetensors`, or as shards with `model.safetensors.index.json` beside them.

    Args:
        state: tensors by name. Parameters that modules share are written once for each of their names.
        directory: where to; it exists.
        max_shard_size: bytes, or a text such as "5GB".

    Raises:
        ValueError: a tensor holds NaN or infinite values: nothing would load it.
    """
    bad = [key for key, value in state.items() if not _is_finite(value)]
    if bad:
        raise ValueError(f"NaN or infinite values are not saved, they are in {_listed(bad)}")
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    huggingface_hub.save_torch_state_dict(copies, directory, max_shard_size=max_shard_size)


class SavedWeights(Mapping[str, Tensor]):
    """Tensors of safetensors files, read one by one when they are asked for; shapes are known from the headers.

    Args:
        files: the `.safetensors` files; a name must be in one of them only.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged (its header is checked against its size), or a name is there twice.
    """

    def __init__(self, files: Collection[str | Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files = {}
        for path in map(Path, files):
            if not path.is_file():
                raise FileNotFoundError(f"no weights at {path}")
            try:
                opened = safetensors.safe_open(path, framework="pt")
                shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise ValueError(f"{path} can't be read as weights: {error}") from error
            twice = shapes.keys() & self.shapes.keys()
            if twice:
                raise ValueError(f"{path} holds tensors that another file holds as well: {_listed(sorted(twice))}")
            self.shapes.update(shapes)
            self._files.update(dict.fromkeys(shapes, opened))

    def __getitem__(self, key: str) -> Tensor:
        return self._files[key].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def weight_files(directory: str | Path) -> list[Path]:
    """The safetensors files of a saved model: `model.safetensors`, or the shards that the index names.

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
    """Names of the shards in an index; each must be a plain name, so that no file outside its directory is read.

    Raises:
        ValueError: the index is damaged, or names a file of another kind or place.
    """
    try:
        content = json.loads(Path(index).read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights: {type(error).__name__}: {error}") from error
    for name in names:
        if not isinstance(name, str) or not WEIGHT_FILES.fullmatch(name) or name.endswith(".json"):
            raise ValueError(f"{index} names {name!r}; a shard is model-NNNNN-of-NNNNN.safetensors, beside the index")
    return names


def read_state_dict(path: str | Path) -> Mapping[str, Tensor]:
    """Tensors of a `.safetensors` file, or of a `torch.save` file read with `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds something else than tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return SavedWeights([path])
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_compressed(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read as weights: {error}") from error
    except Exception as error:  # pickle's own errors, of which there are many
        raise ValueError(f"{path} can't be read safely as weights (weights_only=True): {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(_is_plain(value) for value in state.values()):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    return state


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor], source: str, fresh: Collection[str] = ()) -> None:
    """Load what fits in full; an error that lists every key in the way otherwise. All or nothing.

    Args:
        model: the model to load into.
        state: tensors by name.
        source: where they come from, for the error messages.
        fresh: keys that are not loaded.

    Raises:
        ValueError: keys are missing, left over, of another shape, or hold NaN or infinite values.
    """
    check_fit(model, state, source, fresh)
    check_finite(state, source)
    model.load_state_dict({key: value for key, value in state.items() if key not in fresh}, strict=False)


def check_fit(model: nn.Module, state: Mapping[str, Tensor], source: str, fresh: Collection[str] = ()) -> None:
    """Compare names and shapes (of `SavedWeights` without reading a tensor).

    Args:
        model: the model, on any device, "meta" too.
        state: tensors by name.
        source: where they come from.
        fresh: keys of the model that are not loaded, whatever the state holds for them.

    Raises:
        ValueError: with every key that is missing, left over or of another shape.
    """
    shapes, own = shapes_of(state), shapes_of(model.state_dict())
    problems = [f"missing {key}" for key in own if key not in shapes and key not in fresh]
    problems += [f"left over {key}" for key in shapes if key not in own and key not in fresh]
    problems += [
        f"{key} is {shapes[key]}, the model has {shape}"
        for key, shape in own.items()
        if key in shapes and shapes[key] != shape and key not in fresh
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model ({len(problems)} keys):\n  {_listed(problems, chr(10))}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading a tensor of `SavedWeights`."""
    return state.shapes if isinstance(state, SavedWeights) else {key: tuple(v.shape) for key, v in state.items()}


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse NaN and infinite values; tensors are looked at one by one.

    Raises:
        ValueError: with the keys of the tensors that hold them.
    """
    bad = [key for key in state if not _is_finite(state[key])]
    if bad:
        raise ValueError(f"{source} holds NaN or infinite values in {_listed(bad)}")


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _refuse_compressed(path: Path) -> None:
    """`torch.save` compresses nothing: what is packed could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise RuntimeError(f"it holds compressed entries ({_listed(packed)}), which torch.save does not write")


def _listed(items: list[str], separator: str = ",") -> str:
    space = "\n  " if separator == "\n" else ", "
    more = f"{space}... and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return space.join(items[:MAX_LISTED]) + more
