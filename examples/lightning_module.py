"""Fine-tuning with Lightning: a `LightningModule` around the model.

pip install minmax-entropy lightning
python examples/lightning_module.py                             # bundled synthetic images, seconds on a CPU
python examples/lightning_module.py --data FOLDER --model wsl_resnet50 --pretrained --epochs 20
"""

import argparse

import lightning
from torch.utils.data import DataLoader

import minmax_entropy
from minmax_entropy.data import SyntheticShapes, TrainingTransform, TransformedImages, open_split
from minmax_entropy.engine import evaluate, get_recipe


class Localization(lightning.LightningModule):
    def __init__(self, model: minmax_entropy.WSLModel) -> None:
        super().__init__()
        self.model = model

    def on_train_epoch_start(self) -> None:
        self.model.erasing.steps = 2 if self.current_epoch >= 1 else 0  # recursive erasing, from the second epoch on

    def training_step(self, batch, _):
        output = self.model(*batch)
        self.log_dict({"loss": output.loss, **output.losses})
        return output.loss

    def validation_step(self, batch, _) -> None:
        self.log("valid_loss", self.model(*batch).loss)

    def configure_optimizers(self):
        return get_recipe("finetune").build_optimizer(self.model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="folder of images by class; bundled synthetic images by default")
    parser.add_argument("--model", default="wsl_test_resnet")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    train = open_split(options.data, "train") if options.data else SyntheticShapes(120, num_classes=3)
    valid = open_split(options.data, "valid", train.class_names) if options.data else SyntheticShapes(30, 64, 3, seed=1)
    settings = dict(num_classes=len(train.class_names), img_size=None if options.data else 64)
    model = minmax_entropy.create_model(options.model, options.pretrained, **settings)
    size, *values = (model.data_config[key] for key in ("input_size", "mean", "std", "interpolation"))
    transforms = [TrainingTransform(augmentation, size[-2:], *values) for augmentation in ("crop", "none")]
    loader = DataLoader(TransformedImages(train, transforms[0]), batch_size=8, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(max_epochs=options.epochs, default_root_dir="runs/lightning_module")
    trainer.fit(Localization(model), loader, DataLoader(TransformedImages(valid, transforms[1]), batch_size=8))
    print(f"loss {trainer.callback_metrics['valid_loss']:.3f}", evaluate(model, valid).metrics)
    model.save_pretrained("runs/lightning_module/model", class_names=train.class_names)


if __name__ == "__main__":
    main()
