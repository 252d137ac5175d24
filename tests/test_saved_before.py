"""What an earlier version saved gives what it gave: `saved/`, written by commit 9a5f05a.

The model is `create_model("wsl_test_resnet", num_classes=6, img_size=64, out_index=1, preset="refined", stem_width=8,
channels=(8, 8, 8, 16))`, seed 0, after four epochs of `get_recipe("scratch")` on 120 bundled images with seed 0;
`weights.pt` is its state dict, and `expected.npz` what `predict_images` gave for three test images,
with its views and with one.
"""

from pathlib import Path

import numpy as np
import pytest

import minmax_entropy as mme
from minmax_entropy.data import open_split
from minmax_entropy.engine import Inference, predict_images

SAVED = Path(__file__).parent / "saved"
ARCHITECTURE = dict(num_classes=6, img_size=64, out_index=1, stem_width=8, channels=(8, 8, 8, 16))
MASKS = dict(  # the preset's, then
    mask_sigma=0.28,
    decision="localizer",
    mask_refinement=dict(iterations=10, dilations=(1, 2, 4, 8), temperature=0.15, scale=4, sigma=0.5, compression=0.4),
    evaluation_scales=(0.75, 1.0, 1.5),
    evaluation_flip=True,
    evaluation_zoom=dict(scale=2.0, below=0.135, share=0.4),
)


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_masks_are_those_of_before(kind):
    if kind == "model":
        model = mme.create_model(f"local-dir:{SAVED / 'model'}")
        assert model.class_names == list(open_split("shapes:", "train", length=6).class_names)
    else:
        model = mme.create_model("wsl_test_resnet", checkpoint_path=SAVED / "weights.pt", **ARCHITECTURE, **MASKS)
    expected = np.load(SAVED / "expected.npz")
    images = open_split("shapes:", "test", length=4)

    def predicted(inference=None):
        pairs = ((index, images.image(index)) for index in range(3))
        return list(predict_images(model, pairs, inference=inference))

    found = predicted()
    np.testing.assert_allclose([each.mask for each in found], expected["masks"], atol=1e-3)
    np.testing.assert_allclose([each.probabilities for each in found], expected["probabilities"], atol=1e-5)
    single = predicted(Inference(views=mme.Views()))
    np.testing.assert_allclose([each.mask for each in single], expected["one_view"], atol=1e-3)
    assert np.abs(expected["masks"].astype(float) - expected["one_view"]).max() > 0.1
