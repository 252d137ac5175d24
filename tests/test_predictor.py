"""Pictures of any kind in, predictions out."""

import concurrent.futures
import json

import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy.data import DamagedFileError, preprocess_for
from minmax_entropy.engine import predict_images
from minmax_entropy.inference.views import see

VIEWS = mme.Views((1.0, 1.5), mirror=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = dict(img_size=64, out_index=1, localizer="average", classifier="average", evaluation_scales=(0.75, 1.0))
    model = mme.create_model("wsl_test_resnet", num_classes=3, decision="localizer", **options)
    model.class_names = ["a", "b", "c"]
    return model


def picture(height=60, width=90, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    for name, seed in (("one.png", 1), ("two.png", 2), ("more/three.png", 3)):
        picture(seed=seed).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def same(found, expected):
    assert (found.class_index, found.class_name) == (expected.class_index, expected.class_name)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_pictures_of_every_kind(model, tmp_path):
    image = picture()
    image.save(tmp_path / "picture.png")
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    predictor = mme.Predictor(model)
    (expected,) = predict_images(model, [(0, image)])
    kinds = [image, pixels, tensor, tensor / 255, str(tmp_path / "picture.png"), tmp_path / "picture.png"]
    for kind in kinds:
        found = predictor(kind)
        same(found, expected)
        assert np.array_equal(np.asarray(found.image), pixels) and found.mask.shape == (60, 90)
    for found in predictor(kinds):
        same(found, expected)
    grey = np.asarray(image.convert("L"))
    for kind in (grey, torch.from_numpy(grey.copy())[None], Image.fromarray(grey)):
        same(predictor(kind), predictor(np.repeat(grey[:, :, None], 3, axis=2)))
    same(mme.explain(image, model, views=VIEWS), mme.Predictor(model, VIEWS)(image))


def test_a_folder(model, folder):
    found = mme.Predictor(model, progress=True)(folder)
    assert [each.source.name for each in found] == ["three.png", "one.png", "two.png"]
    assert [each.index for each in found] == [0, 1, 2]
    for each, seed in zip(found, (3, 1, 2), strict=True):
        same(each, mme.Predictor(model)(picture(seed=seed)))


def test_views_are_those_that_are_given(model):
    image = picture()
    images = preprocess_for(model)(image)[None]
    for views in (mme.Views(), VIEWS, mme.Views((1.0,), zoom=mme.Zoom(below=1.0))):
        (scores,), mask = see(model.eval(), images, views)
        found = mme.Predictor(model, views)(image)
        restored = preprocess_for(model).restore(mask[0].detach(), (60, 90))[0]
        np.testing.assert_allclose(found.mask, restored, atol=1e-5)
        np.testing.assert_allclose(found.probabilities, scores.softmax(dim=1)[0].detach(), atol=1e-5)
    recommended = mme.Predictor(model)(image)
    assert np.abs(recommended.mask - mme.Predictor(model, mme.Views())(image).mask).max() > 0.01
    with pytest.raises(ValueError, match="views have scales and flips of their own"):
        mme.engine.Inference(scales=(1.0,), views=VIEWS)


def test_settings_are_arguments(model):
    """Threads with one model and different settings get what they would get alone, and nothing is left changed."""
    model.train()
    before = model.settings()
    pictures = [picture(seed=seed) for seed in range(6)]
    predictors = [
        mme.Predictor(model, views, threshold=threshold, min_probability=least, batch_size=2)
        for views in (mme.Views(), VIEWS, mme.Views((1.0,), flips=("vertical",)))
        for threshold, least in ((0.3, 0.0), (0.6, 1.0))
    ]
    expected = [predictor(pictures) for predictor in predictors]
    with concurrent.futures.ThreadPoolExecutor(len(predictors)) as pool:
        found = list(pool.map(lambda predictor: predictor(pictures), predictors))
    for one, other in zip(found, expected, strict=True):
        for each, sought in zip(one, other, strict=True):
            same(each, sought)
            assert (each.threshold, each.nothing) == (sought.threshold, sought.nothing)
    assert all(each.nothing and not each.mask.any() for each in expected[1])
    assert not any(each.nothing for each in expected[0]) and model.settings() == before
    assert all(part.training for part in model.modules())


def test_what_a_prediction_gives(model, tmp_path):
    picture().save(tmp_path / "one.png")
    found = mme.Predictor(model, threshold=0.6)(tmp_path / "one.png")
    assert np.array_equal(found.marked, found.mask >= 0.6) and found.marked.any() and not found.marked.all()
    x0, y0, x1, y1 = found.boxes[0]
    assert found.marked[y0:y1, x0:x1].any() and found.overlay().size == (90, 60)
    row = json.loads(json.dumps(found.to_dict()))
    assert row["class"] == found.class_name in model.class_names and row["image"] == str(tmp_path / "one.png")
    assert row["share"] == pytest.approx(found.marked.mean(), abs=1e-4) and row["boxes"][0] == [x0, y0, x1, y1]
    paths = found.save(tmp_path / "found")
    assert [path.name for path in paths.values()] == ["one_overlay.png", "one_mask.png"]
    assert np.array_equal(np.asarray(Image.open(paths["mask"])) == 255, found.marked)
    (plain,) = predict_images(model, [(0, picture())])
    with pytest.raises(ValueError, match="does not hold its picture"):
        plain.overlay()
    nothing = mme.explain(picture(), model, min_probability=1.0).to_dict()
    assert nothing["class"] is None and nothing["boxes"] == [] and nothing["share"] == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (3, TypeError, "a file, a PIL image, an array or a tensor, got int"),
        (np.zeros((4, 4, 3)), ValueError, r"uint8 \[H, W\] or \[H, W, 3\], got float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), dtype=np.uint8), ValueError, r"got uint8 \[4, 4, 2\]"),
        (torch.zeros(4, 4, 3), ValueError, r"\[1, H, W\] or \[3, H, W\], got \[4, 4, 3\]"),
        (torch.full((3, 4, 4), 1.5), ValueError, r"values in \[0, 1\], before any normalization"),
        ("nowhere.png", FileNotFoundError, "nowhere.png"),
    ],
)
def test_no_pictures(model, wrong, error, message):
    with pytest.raises(error, match=message):
        mme.Predictor(model)([wrong])


def test_a_damaged_file(model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DamagedFileError, match=r"bad\.png"):
        mme.Predictor(model)(tmp_path / "bad.png")


def test_settings_that_can_not_be(model):
    with pytest.raises(ValueError, match="threshold cuts a mask"):
        mme.Predictor(model, threshold=1.0)
    with pytest.raises(ValueError, match="tiles of this backbone are multiples of"):
        mme.Predictor(model, tile=33)
    several = mme.create_model("wsl_test_resnet", num_classes=2, task="multilabel", img_size=64)
    with pytest.raises(ValueError, match="one class an image is expected here"):
        mme.Predictor(several)
