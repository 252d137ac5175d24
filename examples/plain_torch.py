"""Fine-tuning in plain PyTorch: your own loop around the model.

pip install minmax-entropy
python examples/plain_torch.py                                  # bundled synthetic images, seconds on a CPU
python examples/plain_torch.py --data FOLDER --model wsl_resnet50 --pretrained --epochs 20
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
    parser.add_argument("--model", default="wsl_test_resnet")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = open_split(options.data, "train") if options.data else SyntheticShapes(120, num_classes=3)
    valid = open_split(options.data, "valid", train.class_names) if options.data else SyntheticShapes(30, 64, 3, seed=1)
    settings = dict(num_classes=len(train.class_names), img_size=None if options.data else 64)
    model = minmax_entropy.create_model(options.model, options.pretrained, **settings).to(device)
    config = model.data_config
    values = (config[key] for key in ("mean", "std", "interpolation"))
    transform = TrainingTransform("crop", config["input_size"][-2:], *values)
    loader = DataLoader(TransformedImages(train, transform), batch_size=8, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4 if options.pretrained else 2e-3)
    for epoch in range(options.epochs):
        model.train()
        model.erasing.steps = 2 if epoch >= 1 else 0  # recursive erasing, from the second epoch on
        for images, target in loader:
            output = model(images.to(device), target.to(device))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {output.loss:.3f}", evaluate(model, valid).metrics)
    model.save_pretrained("runs/plain_torch", class_names=train.class_names)


if __name__ == "__main__":
    main()
