"""Fine-tuning with Hugging Face's `Trainer`, which takes the model unchanged.

pip install minmax-entropy "transformers[torch]"
python examples/hf_trainer.py                                   # bundled synthetic images, seconds on a CPU
python examples/hf_trainer.py --data FOLDER --model wsl_resnet50 --pretrained --epochs 20
"""

import argparse

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import minmax_entropy
from minmax_entropy.data import SyntheticShapes, TrainingTransform, TransformedImages, open_split
from minmax_entropy.engine import evaluate


def collate(items: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    images, target = zip(*items, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(target)}


class Erasing(TrainerCallback):
    def on_epoch_begin(self, args, state, control, model, **_) -> None:
        model.erasing.steps = 2 if state.epoch >= 1 else 0  # recursive erasing, from the second epoch on


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
    config = model.data_config
    shape = config["input_size"][-2:], config["mean"], config["std"], config["interpolation"]
    rate = 2e-4 if options.pretrained else 2e-3
    arguments = TrainingArguments("runs/hf_trainer", num_train_epochs=options.epochs, learning_rate=rate)
    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=TransformedImages(train, TrainingTransform("crop", *shape)),
        eval_dataset=TransformedImages(valid, TrainingTransform("none", *shape)),
        callbacks=[Erasing()],
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0],  # logits; masks would fill the memory
        compute_metrics=lambda found: {"error": (found.predictions.argmax(axis=1) != found.label_ids).mean()},
    )
    trainer.train()
    print(trainer.evaluate(), evaluate(model, valid).metrics)
    model.save_pretrained("runs/hf_trainer/model", class_names=train.class_names)


if __name__ == "__main__":
    main()
