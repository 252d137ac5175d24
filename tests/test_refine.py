"""What comes after a prediction: averages over flips and scales, the choice of a threshold, and refined masks."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import uniform_filter

import minmax_entropy as mme
from minmax_entropy import hub
from minmax_entropy.data import DamagedFileError, LabelledImages
from minmax_entropy.engine import (
    Inference,
    ProbabilityChoice,
    choose_min_probability,
    choose_threshold,
    create_refinement,
    evaluate,
    list_refinements,
    predict_images,
    preprocess_for,
    threshold,
)
from minmax_entropy.engine.cases import case_grid
from minmax_entropy.engine.threshold import THRESHOLDS, DiceCurve
from minmax_entropy.inference import filters as refine
from minmax_entropy.inference.files import predict_files
from minmax_entropy.inference.views import Views, see
from minmax_entropy.metrics import dice

SIZES = [(40, 56), (40, 56), (33, 64), (64, 35), (40, 56)]


def create(**keywords):
    torch.manual_seed(0)
    options = {
        "preset": "paper",
        "img_size": 64,
        "out_index": 1,
        "localizer": "average",
        "classifier": "average",
        **keywords,
    }
    return mme.create_model("wsl_test_resnet", num_classes=2, **options).eval()


class Masked(LabelledImages):
    """Images of noise with random masks; the third has none, and the index in `broken` can't be read."""

    class_names = ("a", "b")

    def __init__(self, broken=None, masks=True):
        rng = np.random.default_rng(1)
        self.images = [Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in SIZES]
        self.masks = [rng.random(size) < share for size, share in zip(SIZES, (0.1, 0.3, 0.5, 0.7, 0.0), strict=True)]
        self.masks[2] = None
        if not masks:
            self.masks = [None] * len(SIZES)
        self.broken = broken

    def __len__(self):
        return len(self.images)

    def image(self, index):
        if index == self.broken:
            raise DamagedFileError(f"{index}.png", "broken")
        return self.images[index]

    def target(self, index):
        return index % 2

    def mask(self, index):
        return self.masks[index]


@pytest.fixture(scope="module")
def data():
    return Masked()


@pytest.fixture(scope="module")
def model():
    return create()


def predict(model, images, **keywords):
    return list(predict_images(model, enumerate(images), **keywords))


# Averages


@pytest.mark.parametrize("decision", ["localizer", "classifier"])
def test_average_over_flips_and_scales(data, decision):
    """The mask of all views; the localizer's class is the mean of the flips of the image as large as it is."""
    model, flips = create(decision=decision), ("horizontal", "both", "vertical")
    averaged = predict(model, data.images, inference=Inference(flips=flips, scales=(1.0, 0.5)), batch_size=3)
    preprocess = preprocess_for(model)
    for index, (prediction, image) in enumerate(zip(averaged, data.images, strict=True)):
        images = preprocess(image)[None]
        scores, mask = see(model, images, Views((1.0, 0.5), flips=flips))
        expected = preprocess.restore(mask[0], (image.height, image.width))[0].detach()
        turned = [images, *(images.flip(axes) for axes in ((-1,), (-2, -1), (-2,)))]
        logits = [model.class_maps(each)[0] for each in turned]
        if decision == "classifier":
            logits = [model.classify(images * mask)]
        probabilities = (sum(each.softmax(dim=1) for each in logits) / len(logits))[0].detach()
        assert prediction.index == index and prediction.mask.dtype == np.float32
        np.testing.assert_allclose(prediction.mask, expected, atol=1e-5)
        np.testing.assert_allclose(prediction.probabilities, probabilities, atol=1e-5)
        assert prediction.class_index == probabilities.argmax() and len(scores) == 4


def test_a_symmetric_average_of_a_symmetric_image(model):
    half = np.random.default_rng(0).integers(0, 256, (64, 32, 3)).astype(np.uint8)
    image = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
    plain, averaged = (
        predict(model, [image], inference=inference)[0].mask for inference in (None, Inference(flips=("horizontal",)))
    )
    assert averaged == pytest.approx(averaged[:, ::-1], abs=1e-5) and np.abs(plain - plain[:, ::-1]).max() > 0.01


def test_scales_of_images_that_are_not_scaled(data):
    """Where the authors' implementation leaves images as they are, a scale still means what it says."""
    model = create(data_config=dict(resize="reference_native"))
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    predict(model, [Image.new("RGB", (128, 64))], inference=Inference(scales=(1.0, 2.0)))
    assert {(64, 128), (128, 256)} <= set(seen)


def test_evaluation_of_averages(model, data):
    inference = Inference(flips=("horizontal",))
    result = evaluate(model, data, inference=inference)
    masks = [prediction.mask for prediction in predict(model, data.images, inference=inference)]
    for row, mask in zip(result.rows, masks, strict=True):
        assert row["mask_area"] == pytest.approx(mask.mean(), abs=1e-6)
        if data.mask(row["index"]) is not None:
            assert row["f1_foreground"] == pytest.approx(dice(mask >= 0.5, data.mask(row["index"])), abs=1e-9)


# Thresholds


def test_dice_curve_equals_dice_at_each_threshold(monkeypatch):
    monkeypatch.setattr("minmax_entropy._bands.BAND_PIXELS", 100)
    rng, curve = np.random.default_rng(0), DiceCurve()
    pairs = [(rng.random((19, 23)).astype(np.float32), rng.random((19, 23)) < share) for share in (0.3, 0.0, 1.0)]
    pairs.append((np.float32([[0.0, 0.5, 1.0]]), np.array([[False, True, True]])))
    pairs.append((np.repeat(THRESHOLDS[None], 2, axis=0), rng.random((2, 99)) < 0.5))  # just at the thresholds
    pairs.append((np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)))
    for mask, target in pairs:
        curve.update(mask, target)
    expected = [np.mean([dice(mask >= float(t), target) for mask, target in pairs]) for t in THRESHOLDS]
    assert curve.mean() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"mask \(2, 2\) and target \(2, 3\) differ in shape"):
        curve.update(np.zeros((2, 2)), np.zeros((2, 3), bool))


def test_choice_of_a_threshold(data):
    model = create(mask_threshold=0.7)
    choice = choose_threshold(model, data)
    figures = {float(t): evaluate(model, data, threshold=float(t)).metrics["f1_foreground"] for t in THRESHOLDS[9::20]}
    assert choice.images == 4 and model.mask_threshold == 0.7 and choice.damaged == []
    assert list(choice.curve) == [round(0.01 * step, 2) for step in range(1, 100)]
    assert {t: choice.curve[round(t, 2)] for t in figures} == pytest.approx(figures)
    assert choice.curve[choice.threshold] == max(choice.curve.values()) == choice.f1_foreground
    assert choice.f1_foreground >= max(figures.values()) - 1e-9
    assert choice.f1_foreground_before == pytest.approx(evaluate(model, data).metrics["f1_foreground"])
    model.mask_threshold = choice.threshold
    assert evaluate(model, data).metrics["f1_foreground"] == pytest.approx(choice.f1_foreground)
    other = choose_threshold(model, data, inference=Inference(flips=("both",)))
    assert other.f1_foreground != choice.f1_foreground


def test_of_equal_thresholds_the_lowest(monkeypatch, model):
    """Masks of two values: everything over the lower one, up to the higher one, is the best."""
    data = Masked()
    data.masks = [np.arange(h * w).reshape(h, w) % 3 == 0 for h, w in SIZES]

    def fake(model, images, *arguments, **keywords):
        for index, _ in images:
            mask = np.where(data.masks[index], 0.6, 0.205).astype(np.float32)
            yield mme.engine.Prediction(index, 0, 1.0, mask, np.ones(2))

    monkeypatch.setattr(threshold, "predict_images", fake)
    choice = choose_threshold(model, data)
    assert (choice.threshold, choice.f1_foreground) == (0.21, 1.0)


def test_choice_without_masks_or_with_damaged_files(model):
    with pytest.raises(ValueError, match="none of the 5 images has a mask: a threshold is chosen by them"):
        choose_threshold(model, Masked(masks=False))
    with pytest.raises(DamagedFileError, match=r"1\.png"):
        choose_threshold(model, Masked(broken=1))
    choice = choose_threshold(model, Masked(broken=1), skip_damaged=True)
    assert choice.images == 3 and choice.damaged == ["1.png"]


def test_the_threshold_is_stored_with_the_model(tmp_path):
    model = create(mask_threshold=0.3)
    model.class_names = ["a", "b"]
    model.save_pretrained(tmp_path / "model", metrics={"error": 0.25}, license="mit")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    again = mme.create_model(f"local-dir:{tmp_path / 'model'}")
    assert again.mask_threshold == 0.3
    again.mask_threshold = 0.42
    assert hub.save_settings(again, tmp_path / "model") == tmp_path / "model" / "config.json"
    assert mme.create_model(f"local-dir:{tmp_path / 'model'}").mask_threshold == 0.42
    now = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert now.keys() == files.keys() and {name for name in now if now[name] != files[name]} == {"config.json"}
    before, after = json.loads(files["config.json"]), json.loads(now["config.json"])
    before["model"]["mask_threshold"] = 0.42
    assert before == after


@pytest.mark.parametrize(
    "inference",
    [Inference(), Inference(tile=64), Inference(flips=("both",), refine=lambda image, mask: mask)],
    ids=["whole", "tiles", "averages"],
)
def test_nothing_here(data, inference):
    """Under the model's `min_probability` the mask is empty; the class stays the most probable one."""
    model = create()
    (plain,) = predict(model, [data.image(0)], inference=inference)
    for value, nothing in ((plain.probability - 1e-4, False), (plain.probability + 1e-4, True)):
        model.min_probability = value
        (found,) = predict(model, [data.image(0)], inference=inference)
        assert (found.nothing, found.class_index, found.probability) == (nothing, plain.class_index, plain.probability)
        np.testing.assert_array_equal(found.mask, 0 * plain.mask if nothing else plain.mask)
        row = evaluate(model, data, inference=inference).rows[0]
        assert row["predicted"] == plain.class_index and (row["f1_foreground"] == 0) == nothing


def test_nothing_in_a_file(data, tmp_path):
    path = tmp_path / "image.png"
    data.image(0).save(path)
    (result,) = predict_files(mme.Predictor(create(min_probability=1.0)), [path], tmp_path)
    assert (result["class"], result["boxes"], result["share"]) == (None, [], 0.0) and result["probability"] > 0
    assert not np.asarray(Image.open(result["mask"])).any()


def test_fresh_heads_have_no_least_probability(tmp_path):
    """It was chosen for those that were there."""
    model = create(min_probability=0.9)
    model.save_pretrained(tmp_path / "model")
    source = f"local-dir:{tmp_path / 'model'}"
    assert mme.create_model(source).min_probability == mme.create_model(source, num_classes=2).min_probability == 0.9
    assert mme.create_model(source, num_classes=7).min_probability == 0
    assert mme.create_model(source, num_classes=7, min_probability=0.5).min_probability == 0.5
    model.reset_classifier(3)
    assert model.min_probability == 0 == model.settings()["min_probability"]


def test_choice_of_the_least_probability(data):
    model = create()
    probabilities = sorted(row["probability"] for row in evaluate(model, data).rows)
    for share, rank in ((0.999, 0), (0.75, 1), (0.5, 2), (0.001, 3)):
        choice = choose_min_probability(model, data, share=share)
        assert choice == ProbabilityChoice(probabilities[rank], len(data), [])
    assert model.min_probability == 0
    broken = choose_min_probability(model, Masked(broken=1), skip_damaged=True)
    assert broken.images == len(data) - 1 and broken.damaged == ["1.png"]
    for share in (0, 1, -0.5):
        with pytest.raises(ValueError, match="share is that of the images"):
            choose_min_probability(model, data, share=share)


@pytest.mark.parametrize("value", [-0.1, 1.5, "half", None, float("nan"), True])
def test_bad_least_probabilities(value):
    with pytest.raises((TypeError, ValueError), match="min_probability"):
        create(min_probability=value)
    model = create()
    with pytest.raises((TypeError, ValueError), match="min_probability"):
        model.min_probability = value


def test_settings_that_would_not_load_are_not_stored(tmp_path):
    model = create()
    with pytest.raises(FileNotFoundError, match="no saved model in"):
        hub.save_settings(model, tmp_path)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"mask_threshold cuts a mask with values in .*, got 1.5"):
        model.mask_threshold = 1.5
    model.mask_threshold, model.data_config["foo"] = 0.6, 1
    with pytest.raises(ValueError, match="data_config has no 'foo'"):
        hub.save_settings(model, tmp_path / "model")
    assert mme.create_model(f"local-dir:{tmp_path / 'model'}").mask_threshold == 0.5
    assert not [path for path in (tmp_path / "model").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, "half", None, float("nan"), True])
def test_bad_thresholds(value):
    with pytest.raises(ValueError, match="mask_threshold"):
        create(mask_threshold=value)


def test_the_models_threshold_is_used(data, tmp_path):
    """In figures, predicted files and pictures."""
    model = create(mask_threshold=0.6)
    path = tmp_path / "image.png"
    data.image(0).save(path)
    mask = predict(model, [data.image(0)])[0].mask
    for given, used in ((None, 0.6), (0.35, 0.35)):
        rows = evaluate(model, data, threshold=given).rows
        assert rows[0]["f1_foreground"] == pytest.approx(dice(mask >= used, data.mask(0)), abs=0.01)
        (result,) = predict_files(mme.Predictor(model, threshold=given), [path], tmp_path)
        assert result["share"] == pytest.approx((mask >= used).mean(), abs=1e-4)
    at = [case_grid({"m": model}, data, [0], threshold=given).tobytes() for given in (None, 0.6, 0.35)]
    assert at[0] == at[1] != at[2]


# Refinement


def edge_case(noise=10):
    """An image of a dark square on bright ground, and a blurred mask of it that is off by some pixels."""
    rng = np.random.default_rng(0)
    truth = np.zeros((60, 80), dtype=bool)
    truth[18:42, 25:55] = True
    image = np.where(truth[..., None], 60, 200) + rng.normal(0, noise, (60, 80, 3))
    mask = uniform_filter(np.roll(truth, (4, -5), axis=(0, 1)).astype(np.float32), 13)
    return image.clip(0, 255).astype(np.uint8), (0.05 + 0.9 * mask).astype(np.float32), truth


def guided_by_numpy(image, mask, radius, eps):
    """He et al. (TPAMI 2013), equations 19 to 21, position by position, with replicated borders."""

    def mean(values):
        return uniform_filter(values, (2 * radius + 1, 2 * radius + 1), mode="nearest")

    guide = image.astype(np.float64) / 255
    means = np.stack([mean(guide[..., c]) for c in range(3)], axis=-1)
    second = [[mean(guide[..., i] * guide[..., j]) - means[..., i] * means[..., j] for j in range(3)] for i in range(3)]
    covariance = np.moveaxis(np.array(second), (0, 1), (2, 3)) + eps * np.eye(3)
    with_mask = np.stack([mean(guide[..., c] * mask) - means[..., c] * mean(mask) for c in range(3)], axis=-1)
    slope = np.linalg.solve(covariance, with_mask[..., None])[..., 0]
    offset = mean(mask) - (slope * means).sum(axis=-1)
    slope = np.stack([mean(slope[..., c]) for c in range(3)], axis=-1)
    return ((slope * guide).sum(axis=-1) + mean(offset)).clip(0, 1)


@pytest.mark.parametrize(("radius", "eps"), [(0.05, 1e-2), (0.1, 1e-3)])
def test_guided_filter(radius, eps):
    pytest.importorskip("kornia")
    image, mask, truth = edge_case()
    refined = create_refinement("guided_filter", radius=radius, eps=eps)(image, mask)
    expected = guided_by_numpy(image, mask.astype(np.float64), round(radius * 60), eps)
    assert refined.shape == (60, 80) and refined.dtype == np.float32
    assert refined == pytest.approx(expected, abs=2e-3)
    assert dice(refined >= 0.5, truth) > dice(mask >= 0.5, truth) + 0.01


def test_dense_crf():
    pytest.importorskip("pydensecrf.densecrf")
    image, mask, truth = edge_case()
    refined = create_refinement("dense_crf")(image, mask)
    assert refined.shape == (60, 80) and refined.dtype == np.float32 and 0 <= refined.min() <= refined.max() <= 1
    assert dice(refined >= 0.5, truth) > dice(mask >= 0.5, truth) + 0.02
    alone = create_refinement("dense_crf", weight=0.0, smooth_weight=0.0)(image, mask)
    assert alone == pytest.approx(mask, abs=1e-3)  # without neighbours the mask stays


def test_refined_predictions(model, data, monkeypatch):
    """The filter sees the image as it is and the averaged mask; figures and class come with the refined mask."""
    given = []

    def invert(image, mask):
        given.append((image, mask.copy()))
        return 1 - mask

    plain = predict(model, data.images, inference=Inference(flips=("vertical",)))
    refined = predict(model, data.images, inference=Inference(flips=("vertical",), refine=invert))
    for index, (before, after) in enumerate(zip(plain, refined, strict=True)):
        assert np.array_equal(given[index][0], np.asarray(data.images[index]))
        assert given[index][1] == pytest.approx(before.mask, abs=1e-6)
        assert after.mask == pytest.approx(1 - before.mask, abs=1e-6) and after.class_index == before.class_index
    inverse = evaluate(model, data, inference=Inference(refine=invert)).rows[0]["mask_area"]
    assert inverse == pytest.approx(1 - evaluate(model, data).rows[0]["mask_area"], abs=1e-5)


def test_large_images_are_refined_at_a_bounded_size(monkeypatch):
    monkeypatch.setattr(refine, "MAX_REFINED", 600)
    sizes = []

    def keep(image, mask):
        sizes.append((image.shape, mask.shape))
        return mask

    _, mask, _ = edge_case()
    refined = refine.refine_mask(keep, Image.new("RGB", (80, 60)), mask)
    assert sizes == [((21, 28, 3), (21, 28))] and refined.shape == (60, 80)
    assert refined == pytest.approx(mask, abs=0.1)
    for bad in (mask[:5], mask * 3, np.full_like(mask, np.nan)):
        with pytest.raises(ValueError, match=r"a refinement gives a mask \(21, 28\) in \[0, 1\], it gave"):
            refine.refine_mask(lambda image, small, bad=bad: bad[:21, :28], Image.new("RGB", (80, 60)), mask)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("guided_filter", "kornia.filters", "refine"), ("dense_crf", "pydensecrf.densecrf", "crf")],
)
def test_a_missing_package_names_its_extra(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{name} needs .*pip install "minmax-entropy\[{extra}\]"'):
        create_refinement(name)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("guided_filtre", {}, ValueError, "unknown refinement 'guided_filtre'; did you mean guided_filter"),
        ("guided_filter", dict(sigma=3), TypeError, r"'sigma'; its options are \['radius', 'eps'\]"),
        ("guided_filter", dict(radius=0), ValueError, "radius must be over 0 and up to 1, got 0"),
        ("guided_filter", dict(radius=2), ValueError, "radius must be over 0 and up to 1, got 2"),
        ("guided_filter", dict(eps="x"), ValueError, "eps must be over 0, got 'x'"),
        ("dense_crf", dict(weight=-1), ValueError, "weight must be 0 or more, got -1"),
        ("dense_crf", dict(colour=float("inf")), ValueError, "colour must be over 0, got inf"),
        ("dense_crf", dict(iterations=0), ValueError, "iterations must be an integer of 1 or more, got 0"),
    ],
)
def test_bad_refinements(name, options, error, message):
    with pytest.raises(error, match=message):
        create_refinement(name, **options)


def test_registered_refinements():
    assert {"dense_crf", "guided_filter"} <= set(list_refinements())
