"""A small model, and images in memory, for the tests of training and evaluation."""

import numpy as np
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy.data import DamagedFileError, LabelledImages
from minmax_entropy.engine import Recipe

SIZE = 64  # feature maps of 2 x 2 for the localizer, of one position for the classifier
RECIPE = Recipe(lr=2e-3, batch_size=8)


def create(name="wsl_test_resnet", num_classes=2, **keywords):
    torch.manual_seed(0)
    return mme.create_model(name, num_classes=num_classes, **{"img_size": SIZE, "preset": "paper", **keywords})


class InMemory(LabelledImages):
    """Images, targets and masks from lists; an image that is None is damaged."""

    def __init__(self, images, targets, masks=None, class_names=("a", "b")):
        self.images, self.targets, self.class_names = images, targets, list(class_names)
        self.masks = masks or [None] * len(images)

    def __len__(self):
        return len(self.images)

    def image(self, index):
        if self.images[index] is None:
            raise DamagedFileError(f"{index}.png", "broken")
        return self.images[index]

    def target(self, index):
        return self.targets[index]

    def mask(self, index):
        return self.masks[index]


def noise_images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]
