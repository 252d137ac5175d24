"""Whether masks decide the class: probes by the model's own classifier and by a judge; warnings after a look."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from small import InMemory, create
from torch import nn

import minmax_entropy as mme
from minmax_entropy.engine import Probes, Recipe, evaluate, fit, preprocess_for, warnings_of
from minmax_entropy.engine.evaluate import Evaluation
from minmax_entropy.engine.faithfulness import Prober, insertion_deletion
from minmax_entropy.metrics import LocalizationMeter, MaskPlaces, border_share

SIDE = 32
RED, BLUE = (255, 0, 0), (0, 0, 255)
LEFT, RIGHT = slice(0, SIDE // 2), slice(SIDE // 2, SIDE)


class Colours(nn.Module):
    """Features are the colours, of blocks of four pixels."""

    num_features = 3

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 4)


class Sides(nn.Module):
    """Features are the brightness of the left and of the right half, at one position."""

    num_features = 2

    def forward(self, images):
        halves = images.mean(dim=1, keepdim=True).chunk(2, dim=3)
        return torch.cat([half.mean(dim=(2, 3), keepdim=True) for half in halves], dim=1)


def linear(head, weights):
    head.to_modalities.weight.data.copy_(torch.tensor(weights)[:, :, None, None])
    head.to_modalities.bias.data.zero_()


def model_of(backbone, weights, classifier):
    """Scores are weighted features, averaged; the images are pixels in [0, 1]."""
    config = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), input_size=(3, SIDE, SIDE))
    model = mme.WSLModel(
        backbone, 2, localizer="average", classifier=classifier, classifier_scale=1.0, data_config=config
    )
    for head in (model.localizer, model.classifier):
        if head is not None:
            linear(head, weights)
    return model.eval()


BY_COLOUR = [[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]
BY_SIDE = [[9.0, 0.0], [0.0, 9.0]]


def picture(left, right):
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, LEFT], pixels[:, RIGHT] = left, right
    return Image.fromarray(pixels)


def half(columns):
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[:, columns] = 1
    return mask


@pytest.fixture
def judge():
    return model_of(Colours(), BY_COLOUR, None)


def test_the_judge_sees_the_region_and_the_rest(judge):
    prober = Prober(model_of(Colours(), BY_COLOUR, None), Probes(judge), None, 0.5)
    image = picture(RED, BLUE)
    assert prober(image, 0, half(LEFT)) == {"judge_whole": 1, "judge_foreground": 1, "judge_background": 0}
    assert prober(image, 1, half(LEFT)) == {"judge_whole": 0, "judge_foreground": 0, "judge_background": 1}


def test_the_judge_sees_what_is_marked_and_not_how_much(judge):
    mask = np.where(half(LEFT) == 1, 0.51, 0.49).astype(np.float32)
    prober = Prober(judge, Probes(judge), None, 0.5)
    assert prober(picture(RED, BLUE), 1, mask)["judge_foreground"] == 0
    assert Prober(judge, Probes(judge), None, 0.6)(picture(RED, BLUE), 0, mask)["judge_foreground"] == 1  # blank: first


def test_a_rival_marks_as_many_pixels(judge):
    class Rival(nn.Module):
        def forward(self, images):
            ramp = torch.linspace(0, 1, SIDE).expand(len(images), 1, SIDE, SIDE)  # the right first
            return mme.WSLOutput(mask=ramp)

    figures = Prober(judge, Probes(judge, rival=Rival()), None, 0.5)(picture(RED, BLUE), 1, half(LEFT))
    assert (figures["judge_foreground"], figures["judge_background"]) == (0, 1)
    assert (figures["rival_foreground"], figures["rival_background"]) == (1, 0)


@pytest.mark.parametrize(
    ("backbone", "weights", "reads_the_mask"), [(Colours, BY_COLOUR, 0), (Sides, BY_SIDE, 1)], ids=["honest", "code"]
)
def test_a_class_that_is_read_off_the_mask(backbone, weights, reads_the_mask):
    """Red and blue images, the masks of the first on the left, of the second on the right."""
    model = model_of(backbone(), weights, "average")
    prober = Prober(model, Probes(), None, 0.5)
    first = prober(picture(RED, RED), 0, half(LEFT))
    assert first == {"classifier_whole": 1, "classifier_foreground": 1}  # there is no other mask yet
    second = prober(picture(BLUE, BLUE), 1, half(RIGHT))
    assert second["classifier_foreground"] == 1
    assert (second["classifier_swapped"], second["swapped_with"]) == (reads_the_mask, 0)
    prober(picture(BLUE, BLUE), 1, half(RIGHT))
    third = prober(picture(RED, RED), 0, half(LEFT))
    assert (third["classifier_swapped"], third["swapped_with"]) == (reads_the_mask, 1)
    assert prober(picture(RED, RED), 0, half(LEFT))["swapped_with"] == 1  # the latest of another class


def test_masks_of_images_of_another_size():
    model = model_of(Sides(), BY_SIDE, "average")
    prober = Prober(model, Probes(), None, 0.5)
    larger = np.kron(half(LEFT), np.ones((2, 2), dtype=np.float32))
    prober(picture(RED, RED).resize((2 * SIDE, 2 * SIDE)), 0, larger)
    assert prober(picture(BLUE, BLUE), 1, half(RIGHT))["classifier_swapped"] == 1


def test_classifiers_see_whole_images_at_a_size_they_know(judge):
    """Not at the image's own, which may be of any number of pixels."""
    model = model_of(Colours(), BY_COLOUR, "average")
    prober = Prober(model, Probes(judge), preprocess_for(model, "native"), 0.5)
    seen = []
    for one in (model, judge):
        one.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    large = picture(RED, BLUE).resize((8 * SIDE, 8 * SIDE), Image.Resampling.NEAREST)
    figures = prober(large, 0, np.kron(half(LEFT), np.ones((8, 8), dtype=np.float32)))
    assert figures["classifier_foreground"] == figures["judge_foreground"] == 1 and figures["judge_background"] == 0
    assert seen == [(SIDE, SIDE)] * 2


def test_masks_are_ordered_as_finely_as_they_are(judge):
    """Insertion of pixels whose values differ by less than a grey level of an image."""
    image, fine = picture(RED, BLUE), half(LEFT) * 1e-3
    probes = Probes(judge, curve_steps=4)
    found, coarse = (Prober(judge, probes, None, 0.5)(image, 0, mask) for mask in (fine, half(LEFT)))
    assert found["insertion"] == coarse["insertion"] and found["deletion"] == coarse["deletion"]


def by_hand(judge, x, order, blurred, steps):
    """Insertion and deletion, pixel by pixel."""
    areas = []
    for start, goes in ((blurred, False), (x, True)):
        probabilities = []
        for step in range(steps + 1):
            image = start.clone()
            for place in order[: round(step / steps * len(order))]:
                row, column = divmod(place, x.shape[2])
                image[:, row, column] = 0 if goes else x[:, row, column]
            probabilities.append(judge.class_maps(image[None])[0].softmax(dim=1)[0, 0].item())
        areas.append(sum((a + b) / 2 / steps for a, b in itertools.pairwise(probabilities)))
    return dict(zip(("insertion", "deletion"), areas, strict=True))


@torch.no_grad()
def test_insertion_and_deletion(judge, monkeypatch):
    monkeypatch.setattr("minmax_entropy.engine.faithfulness._blurred", lambda x: torch.full_like(x, 0.25))
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.rand(3, 8, 8, generator=generator), torch.rand(8, 8, generator=generator)
    order = sorted(range(64), key=lambda place: -float(mask.flatten()[place]))
    expected = by_hand(judge, x, order, torch.full_like(x, 0.25), 4)
    assert insertion_deletion(judge, x, mask, 0, 4) == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_what_the_judge_looks_at_has_a_high_insertion_and_a_low_deletion(judge):
    x = torch.from_numpy(np.asarray(picture(RED, BLUE)).copy() / 255).float().permute(2, 0, 1)
    good, bad = (insertion_deletion(judge, x, torch.from_numpy(half(side)), 0, 8) for side in (LEFT, RIGHT))
    assert good["insertion"] > bad["insertion"] + 0.2 and good["deletion"] < bad["deletion"] - 0.2


def test_bad_probes(judge):
    with pytest.raises(ValueError, match="a judge must never have met a mask"):
        Probes(create())
    with pytest.raises(ValueError, match="need a judge"):
        Probes(curve_steps=3)
    with pytest.raises(ValueError, match="curve_steps must be 0 or more"):
        Probes(judge, curve_steps=-1)
    with pytest.raises(ValueError, match="the judge has 3 classes, the model has 2"):
        evaluate(create(), InMemory([], []), probes=Probes(create(num_classes=3, preset="cam")))
    turned = create(preset="cam")
    turned.class_names = ["b", "a"]
    with pytest.raises(ValueError, match=r"the judge's classes are \['b', 'a'\], those of the images are \['a', 'b'\]"):
        evaluate(create(), InMemory([], []), probes=Probes(turned))


def test_evaluation_with_probes_has_the_same_figures_besides(shapes):
    model, judge = create(), create(preset="cam")
    plain, probed = evaluate(model, shapes), evaluate(model, shapes, probes=Probes(judge))
    assert [row["index"] for row in probed.rows] == list(range(len(shapes)))
    found = probed.metrics
    assert {name: found[name] for name in plain.metrics} == pytest.approx(plain.metrics, abs=1e-5)
    assert found["judge_whole"] == pytest.approx(1 - evaluate(judge, shapes).metrics["error"])
    assert found["classifier_foreground"] == pytest.approx(1 - plain.metrics["error"])  # it decides
    assert evaluate(judge, shapes, probes=Probes()).metrics.keys() == plain.metrics.keys()  # no classifier to ask


def test_figures_by_class(shapes):
    model = create()
    result = evaluate(model, shapes, probes=Probes())
    for label, figures in result.by_class().items():
        rows = [row for row in result.rows if row["target"] == label]
        assert figures["images"] == len(rows)
        assert figures["f1_foreground"] == pytest.approx(np.mean([row["f1_foreground"] for row in rows]))
        assert figures["error"] == np.mean([row["predicted"] != label for row in rows])
        cut = [row["classifier_swapped"] for row in result.rows if row.get("swapped_with") == label]
        assert figures["classifier_swapped"] == pytest.approx(np.mean(cut))
    parts = [evaluate(model, shapes, share=(number, 3)) for number in range(3)]
    merged, whole = Evaluation.merged(parts).by_class(), evaluate(model, shapes).by_class()
    assert {label: pytest.approx(figures, abs=1e-6) for label, figures in whole.items()} == merged


# Where masks lie


def test_border_share():
    marked = np.zeros((50, 100), dtype=bool)
    assert np.isnan(border_share(marked))
    marked[4:46, 8:92] = True  # all but the border of 8 %
    assert border_share(marked) == 0
    marked[0, :] = True
    assert border_share(marked) == pytest.approx(100 / (42 * 84 + 100))
    assert border_share(np.ones((50, 100), dtype=bool)) == pytest.approx(1 - 0.84**2)


def test_places_of_masks():
    """The mean share of a mask that another marks, over all ordered pairs."""
    masks = np.random.default_rng(0).random((6, 32, 32)) < np.linspace(0.1, 0.9, 32)
    places = MaskPlaces()
    for mask in masks:
        places.update(np.kron(mask, np.ones((3, 2), dtype=bool)))  # any size
    both = sum((masks[i] & masks[j]).sum() for i in range(6) for j in range(6) if i != j)
    assert places.compute()["constancy"] == pytest.approx(both / (5 * masks.sum()))
    assert MaskPlaces().compute() == {}
    once = MaskPlaces()
    once.update(masks[0])
    assert once.compute() == {}


def evaluation_of(rows, places=None):
    rows = [{"index": number, "predicted": row["target"], **row} for number, row in enumerate(rows)]
    return Evaluation(LocalizationMeter(), rows, [], 0.0, (), places or {})


def rows_of(target, count=6, **figures):
    return [{"target": target, "mask_area": 0.2, "border_share": 0.2, **figures} for _ in range(count)]


def same_place(share):
    places = MaskPlaces()
    for number in range(10):
        mask = np.zeros((32, 32), dtype=bool)
        mask[: 8 if number < share * 10 else 0] = True
        mask[8 + number : 8 + number + 1] = share < 1
        places.update(mask)
    return places


@pytest.mark.parametrize(
    ("rows", "places", "expected"),
    [
        (rows_of(0), {}, None),
        (rows_of(0, border_share=0.61), {}, "masks lie along the border of the image: a (0.61)"),
        (rows_of(0, count=4, border_share=0.9), {}, None),  # too few to tell
        (rows_of(0), {0: same_place(1.0)}, "masks lie at one place whatever the image: a (1.00)"),
        (rows_of(0), {0: same_place(0.5)}, None),
        (rows_of(0, mask_area=0.01), {}, "masks mark next to nothing: a (0.01)"),
        (rows_of(0, mask_area=0.95), {}, "masks mark nearly the whole image: a (0.95)"),
        (
            rows_of(0, swapped_with=1, swapped_answer=0),
            {},
            None,
        ),
        (rows_of(0, mask_area=0.5), {0: same_place(0.0)}, None),
        (rows_of(0, classifier_whole=1.0, classifier_foreground=0.75), {}, None),
        (
            rows_of(0, classifier_whole=1.0, classifier_foreground=0.5),
            {},
            "the region does not decide the class: the classifier finds it in whole images, and not in X+: a (0.50)",
        ),
    ],
)
def test_warnings(rows, places, expected):
    found = warnings_of(evaluation_of(rows + rows_of(1), places), ["a", "b"])
    assert found == ([] if expected is None else [expected])


def test_warning_of_a_mask_that_is_a_code():
    first, second = rows_of(0, swapped_with=1, swapped_answer=1), rows_of(1, swapped_with=0, swapped_answer=0)
    text = "the classifier reads the class off the mask: it finds it in images of other classes: a (1.00), b (1.00)"
    assert warnings_of(evaluation_of(first + second), ["a", "b"]) == [text]
    undecided = rows_of(0, swapped_with=1, swapped_answer=0) + second  # always the same answer
    assert warnings_of(evaluation_of(undecided), ["a", "b"]) == []
    three = rows_of(2, swapped_with=1, swapped_answer=0) + second
    assert warnings_of(evaluation_of(three), ["a", "b", "c"]) == []


def test_warning_of_classes_that_were_not_learned():
    rows = rows_of(0) + rows_of(1)
    for row in rows[:5]:
        row["predicted"] = 1
    text = "the classes were not learned: the error is 0.42, by the commonest class 0.50"
    assert warnings_of(evaluation_of(rows), ["a", "b"]) == [text]
    del rows[0]["predicted"], rows[1]["predicted"]
    assert warnings_of(evaluation_of(rows), ["a", "b"]) == []


def test_a_training_says_what_is_wrong(shapes, caplog):
    """An area that counts for everything."""
    model = create(preset="area", size_weight=1e3)
    result = fit(model, shapes, Recipe(lr=1e-2, batch_size=8, size_warmup=0.0), 2, valid=shapes, cpu=True)
    assert result.warnings and all(f"train: {warning}" in caplog.text for warning in result.warnings)
    assert fit(create(), shapes, Recipe(batch_size=8), 1, cpu=True).warnings == []  # nothing to look at


def test_a_training_that_is_over_does_not_say_it_again(shapes, tmp_path, caplog):
    def train():
        model, recipe = create(preset="area", size_weight=1e3), Recipe(lr=1e-2, batch_size=8, size_warmup=0.0)
        return fit(model, shapes, recipe, 1, valid=shapes, cpu=True, output=tmp_path, resume=True).warnings

    warnings = train()
    assert warnings and warnings[0] in caplog.text
    caplog.clear()
    assert train() == warnings and warnings[0] not in caplog.text
