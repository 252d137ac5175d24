"""Write this directory's golden data from a full set: `python tests/golden/trim.py FULL_SET`.

Full maps become every 16th row and column, or go where a subsample and statistics are there. What is stored twice is
stored once, inputs that several cases share by a link in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
STRIDE = 16
SKIPPED = ("train_plain", "fwd_resnet50_k009_train")  # train_schedule has plain steps; fwd_resnet50_train the network
LINK_BYTES = 10_000  # smaller arrays are not worth a link
DROPPED_SETTINGS = ("arrays", "bytes")


def trimmed_arrays(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> (name in the full set, array)."""
    kept = {}
    for name, values in arrays.items():
        if f"{name}__sub" in arrays or name.endswith("er_m_pos_last"):  # the latter is m_pos, which has a subsample
            continue
        if name.startswith("final_full__"):  # up to 64 elements: the subsample holds them all
            continue
        if name.endswith("_s8"):
            kept[f"{name.removesuffix('_s8')}_s16"] = name, values[..., :: STRIDE // 8, :: STRIDE // 8]
        elif name.endswith("er_mask") or name.startswith("pred_mask"):
            kept[f"{name}_s16"] = name, values[..., ::STRIDE, ::STRIDE]
        else:
            kept[name] = name, values
    return kept


def trim(source: Path, target: Path) -> None:
    manifest = json.loads((source / "manifest.json").read_text())
    for case in SKIPPED:
        manifest["cases"].pop(case, None)
        manifest["fp64_yardstick"].pop(case, None)
    stored: dict[str, list[str]] = {}  # digest -> [case, array]
    for case, settings in manifest["cases"].items():
        with np.load(source / f"{case}.npz") as file:
            kept = trimmed_arrays(dict(file))
        own, links = {}, {}
        for name, (_, values) in kept.items():
            digest = hashlib.sha256(f"{values.dtype}{values.shape}".encode() + values.tobytes()).hexdigest()
            place = stored.setdefault(digest, [case, name])
            if values.nbytes < LINK_BYTES or place == [case, name]:
                own[name] = values
            else:
                links[name] = place
        np.savez_compressed(target / f"{case}.npz", **own)
        for key in DROPPED_SETTINGS:
            settings.pop(key, None)
        if links:
            settings["links"] = links
        noise = manifest["fp64_yardstick"].get(case, {})
        trimmed = {name: float(f"{noise[full]:.2g}") for name, (full, _) in kept.items() if noise.get(full)}
        manifest["fp64_yardstick"][case] = trimmed
    (target / "manifest.json").write_text(dumps(manifest) + "\n")


def dumps(manifest: dict) -> str:
    """One line for each case."""
    lines = [f'"{key}": {json.dumps(value)}' for key, value in manifest.items() if not isinstance(value, dict)]
    for key in ("cases", "fp64_yardstick"):
        rows = ",\n".join(f'  "{case}": {json.dumps(value)}' for case, value in manifest[key].items())
        lines.append(f'"{key}": {{\n{rows}\n}}')
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    trim(Path(sys.argv[1]), HERE)
