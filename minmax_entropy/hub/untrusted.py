"""Reading of files of unknown origin: JSON within bounds, and only the tensors of `torch.save` files."""

from __future__ import annotations

import json
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

MAX_JSON_BYTES = 16 * 2**20
ZIP_MAGIC = b"PK\x03\x04"
# All names that a pickled state dict of plain tensors has. torch's own `weights_only` allows more, such as `bytearray`.
GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch(\.cuda)? (\w+Storage|Size|device)"
)
LEGACY_PICKLES = 5  # that come before the tensors in files of torch before 1.6


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: it is too large, too deep, not JSON in UTF-8, has a key twice, or numbers that are not finite.
    """
    with Path(path).open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{path} has more than {MAX_JSON_BYTES // 2**20} MiB, which nothing of its kind has")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse)
        check_values(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"a number must be finite, got {name}")


def check_values(value: Any) -> None:
    """Refuse numbers that are not finite, and texts that can't be written again.

    Args:
        value: value of a JSON file: a number, text, list or dictionary.

    Raises:
        ValueError: there is such a number or text.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite, got one beyond all floats")
    if isinstance(value, str):
        _check_text(value)
    for key, part in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if isinstance(key, str):
            _check_text(key)
        check_values(part)


def _check_text(text: str) -> None:
    """Refuse lone surrogates, and control characters except tabs and newlines."""
    bad = [c for c in text if "\ud800" <= c <= "\udfff" or (c < " " and c not in "\t\n\r") or "\x7f" <= c <= "\x9f"]
    if bad:
        raise ValueError(f"the text {text[:80]!r} has {bad[0]!r} in it, which is no character")


def read_pickled_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a `torch.save` file, or of its entry "state_dict", without running any code in it.

    Raises:
        ValueError: the file is damaged, compressed, or holds something other than plain tensors by name.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # the test that torch uses
        if is_zip:
            _check_archive(path)
        else:
            with path.open("rb") as file:
                _check_globals(file, LEGACY_PICKLES)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read as weights: {error}") from error
    except Exception as error:  # pickle raises many kinds of errors
        raise ValueError(f"{path} can't be read safely as weights (weights_only=True): {error}") from error
    if isinstance(state, dict) and isinstance(inner := dict(dict.items(state)).get("state_dict"), dict):
        state = inner
    if not isinstance(state, dict):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    # Attributes that a pickle sets on tensors and dictionaries could hide what they hold: none of them is kept.
    return {_name(path, key): _plain_tensor(path, key, value) for key, value in dict.items(state)}


def _name(path: Path, key: object) -> str:
    if type(key) is not str:
        raise ValueError(f"{path} does not hold a dictionary of tensors by name: {key!r:.80} is no text")
    return key


def _plain_tensor(path: Path, key: str, value: object) -> Tensor:
    if type(value) not in (Tensor, nn.Parameter):
        raise ValueError(f"{path} does not hold a dictionary of tensors: {key!r} is {type(value).__name__}")
    tensor = Tensor.detach(value)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise ValueError(f"{path} does not hold plain tensors: {key!r} is sparse, quantized, nested or empty")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{path}: {key!r} is {tuple(tensor.shape)}, and less is stored than that")
    return tensor


def _check_archive(path: Path) -> None:
    """Refuse compressed entries, which could unpack to any size: `torch.save` compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]} in it is compressed, which torch.save does not write")
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    _check_globals(file, 1)


def _check_globals(file: IO[bytes], pickles: int) -> None:
    """Check the names in pickles without running them."""
    for _ in range(pickles):
        for code, argument, _ in pickletools.genops(file):
            named = code.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
            if named and not GLOBALS.fullmatch(str(argument)):
                name = str(argument or code.name).replace(" ", ".")
                raise ValueError(f"it names {name}, and tensors need nothing of that")
