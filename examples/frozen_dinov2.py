"""Training of heads on a frozen DINOv2 backbone, which needs little memory and little data.

pip install minmax-entropy
python examples/frozen_dinov2.py                                # bundled synthetic images, random backbone
python examples/frozen_dinov2.py --data FOLDER --pretrained --epochs 20
"""

import argparse

import torch
from torch.utils.data import DataLoader

import minmax_entropy
from minmax_entropy.data import SyntheticShapes, TrainingTransform, TransformedImages, open_split
from minmax_entropy.engine import evaluate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="folder of images by class; bundled synthetic images by default")
    parser.add_argument("--model", default="wsl_vit_small_patch14_dinov2.lvd142m")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = open_split(options.data, "train") if options.data else SyntheticShapes(48, num_classes=3)
    valid = open_split(options.data, "valid", train.class_names) if options.data else SyntheticShapes(12, 64, 3, seed=1)
    settings = dict(num_classes=len(train.class_names), img_size=None if options.data else 112)
    model = minmax_entropy.create_model(options.model, options.pretrained, freeze_backbone=True, **settings).to(device)
    config = model.data_config
    values = (config[key] for key in ("mean", "std", "interpolation"))
    transform = TrainingTransform("crop", config["input_size"][-2:], *values)
    loader = DataLoader(TransformedImages(train, transform), batch_size=8, shuffle=True, drop_last=True)
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(f"training {sum(map(torch.numel, heads))} of {sum(map(torch.numel, model.parameters()))} parameters")
    optimizer = torch.optim.AdamW(heads, lr=2e-3)
    for epoch in range(options.epochs):
        model.train()  # the backbone stays in evaluation mode
        for images, target in loader:
            output = model(images.to(device), target.to(device))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {output.loss:.3f}", evaluate(model, valid).metrics)
    model.save_pretrained("runs/frozen_dinov2", class_names=train.class_names)


if __name__ == "__main__":
    main()
