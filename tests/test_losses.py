"""Terms of the objective, by hand."""

import math

import pytest
import torch

import minmax_entropy as mme
from minmax_entropy import MinMaxEntropyLoss
from minmax_entropy.losses import (
    area,
    border_area,
    log_barrier,
    negative_entropy,
    size_barrier,
    sufficiency,
    uniform_cross_entropy,
)

LOG3 = math.log(3)


def logits_of(*rows):
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_uniform_cross_entropy():
    values = uniform_cross_entropy(logits_of([1, 1, 1], [0.5, 0.25, 0.25]))
    expected = [LOG3, (math.log(2) + 2 * math.log(4)) / 3]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_negative_entropy():
    values = negative_entropy(logits_of([1, 1, 1], [0.5, 0.25, 0.25]))
    expected = [-LOG3, -(0.5 * math.log(2) + 0.5 * math.log(4))]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("term", [uniform_cross_entropy, negative_entropy])
def test_background_terms_are_least_at_the_uniform_distribution(term):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert (term(logits) > term(torch.zeros(1, 4))).all()
    flat = torch.zeros(1, 4, requires_grad=True)
    term(flat).sum().backward()
    torch.testing.assert_close(flat.grad, torch.zeros(1, 4))


@pytest.mark.parametrize("term", [uniform_cross_entropy, negative_entropy])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_background_terms_of_extreme_logits_are_finite(term, num_classes):
    logits = torch.zeros(1, num_classes)
    logits[0, 0] = 1e4
    logits.requires_grad_()
    term(logits).sum().backward()
    assert term(logits).isfinite().all() and logits.grad.isfinite().all()


def test_log_barrier_values():
    """Edge at 1 / t^2 = 0.04 for t = 5: the logarithm above, a line of slope -t below."""
    values = log_barrier(torch.tensor([1.0, 0.5, 0.04, 0.0, -1.0], dtype=torch.float64))
    at_edge = -math.log(0.04) / 5
    expected = [0.0, math.log(2) / 5, at_edge, at_edge + 5 * 0.04, at_edge + 5 * 1.04]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("t", [1.0, 5.0, 20.0])
def test_log_barrier_is_smooth_at_the_edge(t):
    edge = 1 / t**2
    x = torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9), -3.0, 2 * edge], dtype=torch.float64, requires_grad=True)
    values = log_barrier(x, t)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-8)
    values.sum().backward()
    assert x.grad.tolist() == pytest.approx([-t, -t, -t, -1 / (2 * edge * t)])


def test_log_barrier_tends_to_the_hard_constraint():
    assert log_barrier(torch.tensor(0.5), 1e3).item() == pytest.approx(0, abs=1e-3)
    assert log_barrier(torch.tensor(-0.5), 1e3).item() > 400


def test_size_terms():
    mask = torch.cat([torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)]).double()
    torch.testing.assert_close(area(mask), torch.tensor([0.25, 0, 1], dtype=torch.float64))
    outside = -math.log(0.04) / 5 + 0.2
    expected = [-(math.log(0.25) + math.log(0.75)) / 5, outside, outside]
    torch.testing.assert_close(size_barrier(mask), torch.tensor(expected, dtype=torch.float64))


@pytest.fixture
def arguments():
    return dict(
        target=torch.tensor([0, 2]),
        localizer_logits=logits_of([0.5, 0.25, 0.25], [0.5, 0.25, 0.25]),
        logits=logits_of([0.8, 0.1, 0.1], [0.1, 0.1, 0.8]),
        background_logits=logits_of([1, 1, 1], [1, 1, 1]),
        mask=torch.full((2, 1, 4, 4), 0.25, dtype=torch.float64),
    )


TERMS = {"localizer": 1.5 * math.log(2), "foreground": -math.log(0.8), "background": LOG3}


def test_objective(arguments):
    loss, losses = MinMaxEntropyLoss()(**arguments)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(TERMS)
    assert loss.item() == pytest.approx(sum(TERMS.values()))


def test_explicit_entropy(arguments):
    _, losses = MinMaxEntropyLoss("eem")(**arguments)
    assert losses["background"].item() == pytest.approx(-LOG3)


@pytest.mark.parametrize(("size_loss", "value"), [("area", 0.25), ("barrier", -(math.log(0.25) + math.log(0.75)) / 5)])
def test_weights_apply_to_the_sum_only(arguments, size_loss, value):
    weights = {"localizer": 2.0, "foreground": 0.5, "background": 0.0, "size": 3.0}
    criterion = MinMaxEntropyLoss(size_loss=size_loss, **{f"{name}_weight": w for name, w in weights.items()})
    loss, losses = criterion(**arguments)
    terms = {**TERMS, "size": value}
    assert {name: term.item() for name, term in losses.items()} == pytest.approx(terms)
    assert loss.item() == pytest.approx(sum(weights[name] * term for name, term in terms.items()))


@pytest.mark.parametrize(
    ("absent", "keys"),
    [
        (("logits", "background_logits", "mask"), {"localizer"}),
        (("background_logits",), {"localizer", "foreground", "size"}),
        (("mask",), {"localizer", "foreground", "background"}),
    ],
)
def test_absent_terms(arguments, absent, keys):
    arguments = {name: value for name, value in arguments.items() if name not in absent}
    loss, losses = MinMaxEntropyLoss(size_loss="area")(**arguments)
    assert set(losses) == keys
    assert loss.item() == pytest.approx(sum(value.item() for value in losses.values()))


def test_control_term(arguments):
    """Of one image control, of the other the background."""
    arguments["background_logits"] = logits_of([0.25, 0.5, 0.25], [0.5, 0.25, 0.25])
    undecided = -(math.log(0.5) + 2 * math.log(0.25)) / 3
    criterion = MinMaxEntropyLoss(control_weight=3.0)
    for control in ([True, False], [False, True]):
        loss, losses = criterion(**arguments, control=torch.tensor(control))
        assert losses["control"].item() == pytest.approx(math.log(4))
        assert losses["background"].item() == pytest.approx(undecided)
        expected = TERMS["localizer"] + TERMS["foreground"] + undecided + 3 * math.log(4)
        assert loss.item() == pytest.approx(expected)


def test_the_area_counts_as_far_as_the_region_decides(arguments):
    """By hand: p(y) = 1/2 and 1/4, CE(X+) below and 0.3 over CE of the image."""
    arguments["localizer_logits"] = logits_of([0.5, 0.25, 0.25], [0.5, 0.25, 0.25])
    second = 0.25 * math.exp(-0.3)
    arguments["logits"] = logits_of([0.8, 0.1, 0.1], [1 - 2 * second, second, second])
    arguments["mask"][1] = 0.5
    _, losses = MinMaxEntropyLoss(size_loss="area", size_condition="sufficient")(**arguments)
    expected = (0.25 * 0.5 + 0.5 * 0.25 * math.exp(-(0.3 - 0.05) / 0.2)) / 2
    assert losses["size"].item() == pytest.approx(expected)
    plain = {name: value for name, value in arguments.items() if name != "logits"}
    _, losses = MinMaxEntropyLoss(size_loss="area", size_condition="sufficient")(**plain)
    assert losses["size"].item() == pytest.approx(0.375)  # there is nothing to compare with


def test_border_term(arguments):
    mask = torch.zeros(2, 1, 50, 100, dtype=torch.float64)
    mask[0, :, :4] = 1.0  # the upper part of the border
    mask[0, :, 20:30, 20:30] = 1.0
    mask[1, :, :, 96] = 0.5
    _, losses = MinMaxEntropyLoss(border_weight=2.0)(**{**arguments, "mask": mask})
    assert losses["border"].item() == pytest.approx((4 * 100 + 50 * 0.5) / 5000 / 2)
    assert border_area(torch.ones(1, 1, 50, 100)).item() == pytest.approx(1 - 0.84**2)


def test_sufficiency_has_no_gradient_and_is_finite():
    losses = [torch.tensor([0.0, 1e4, 0.0], requires_grad=True), torch.tensor([0.0, 0.0, 1e4], requires_grad=True)]
    found = sufficiency(*losses)
    assert found.tolist() == [1.0, 0.0, 0.0] and not found.requires_grad


def test_sufficiency_of_several_labels():
    """The geometric mean of the probabilities of what is there; an image of nothing is decided by no region."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [2.0, -1.0, 0.5]])
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    criterion = MinMaxEntropyLoss(task="multilabel", size_loss="area", size_condition="sufficient")
    mask = torch.full((2, 1, 2, 2), 0.5)
    _, losses = criterion(target, logits, logits, mask=mask)
    decided = math.sqrt(1 / (1 + math.exp(-2)) / (1 + math.exp(-0.5)))
    assert losses["size"].item() == pytest.approx((0.5 * decided + 0.5) / 2)


def test_localizer_loss_from_erasing(arguments):
    _, losses = MinMaxEntropyLoss()(**arguments, localizer_loss=torch.tensor([1.0, 4.0]))
    assert losses["localizer"].item() == 2.5


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(background_loss="max"), r"background_loss must be one of \['eem', 'sem'\], got 'max'"),
        (dict(size_loss="log"), r"size_loss must be None or one of \['area', 'barrier'\], got 'log'"),
        (dict(size_weight=-1), "size_weight must be a finite number of 0 or more, got -1"),
        (dict(foreground_weight=float("nan")), "foreground_weight must be a finite number"),
        (dict(localizer_weight=float("inf")), "localizer_weight must be a finite number"),
    ],
)
def test_bad_options(keywords, message):
    with pytest.raises(ValueError, match=message):
        MinMaxEntropyLoss(**keywords)


# Label smoothing and class weights

SMOOTHING, WEIGHTS = 0.3, [0.5, 2.0, 0.0]
ROWS = [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_multiclass_cross_entropy(smoothing, weights):
    """`w_y * -sum_k q_k log p_k` with q = 1 - s at the label, and s / K more at every class."""
    labels = [1, 2, 0]
    expected = []
    for row, label in zip(ROWS, labels, strict=True):
        q = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
        loss = -sum(q_k * math.log(p_k) for q_k, p_k in zip(q, row, strict=True))
        expected.append(loss * (1 if weights is None else weights[label]))
    criterion = MinMaxEntropyLoss(label_smoothing=smoothing, class_weights=weights)
    found = criterion.cross_entropy(logits_of(*ROWS), torch.tensor(labels))
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_multilabel_cross_entropy(smoothing, weights):
    """`-sum_k w_k (q_k log p_k + (1 - q_k) log(1 - p_k))` with q = 1 - s / 2 where the label is, s / 2 elsewhere."""
    labels = [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    expected = []
    for row, label in zip(ROWS, labels, strict=True):
        q = [1 - smoothing / 2 if y else smoothing / 2 for y in label]
        terms = [-(b * math.log(p) + (1 - b) * math.log(1 - p)) for b, p in zip(q, row, strict=True)]
        expected.append(sum(w * term for w, term in zip(weights or [1] * 3, terms, strict=True)))
    logits = torch.logit(torch.tensor(ROWS, dtype=torch.float64))
    criterion = MinMaxEntropyLoss(task="multilabel", label_smoothing=smoothing, class_weights=weights)
    assert criterion.cross_entropy(logits, torch.tensor(labels)).tolist() == pytest.approx(expected)


def test_weights_and_smoothing_are_of_both_heads_and_no_other_term(arguments):
    """Labels 0 and 2, weights 0.5 and 3; the mean is over the images, so that an image has its loss in any batch."""
    criterion = MinMaxEntropyLoss(size_loss="area", class_weights=[0.5, 7.0, 3.0])
    _, losses = criterion(**arguments)
    expected = {
        "localizer": (0.5 * math.log(2) + 3 * math.log(4)) / 2,
        "foreground": -(0.5 + 3) / 2 * math.log(0.8),
        "background": LOG3,
        "size": 0.25,
    }
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected)
    criterion.class_weights = None
    _, losses = criterion(**arguments)
    assert losses["localizer"].item() == pytest.approx(TERMS["localizer"])
    _, smooth = MinMaxEntropyLoss(size_loss="area", label_smoothing=0.3)(**arguments)
    assert smooth["foreground"].item() == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.1)))
    assert smooth["background"].item() == pytest.approx(LOG3) and smooth["size"].item() == 0.25


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (dict(label_smoothing=1), ValueError, r"label_smoothing must be in \[0, 1\), got 1"),
        (dict(label_smoothing=-0.1), ValueError, r"label_smoothing must be in \[0, 1\), got -0.1"),
        (dict(label_smoothing=float("nan")), ValueError, "label_smoothing must be a finite number"),
        (dict(label_smoothing="some"), (TypeError, ValueError), "label_smoothing must be a finite number"),
        (dict(class_weights=[1.0, -1.0]), ValueError, "class_weights must be 0 or more, got -1.0"),
        (dict(class_weights=[1.0, float("nan")]), ValueError, "class_weights must be a finite number"),
        (dict(class_weights=[1.0, float("inf")]), ValueError, "class_weights must be a finite number"),
        (dict(class_weights=[]), TypeError, "class_weights must be a list of a number for each class"),
        (dict(class_weights=2.0), TypeError, "class_weights must be a list of a number for each class, got 2.0"),
        (dict(class_weights=torch.ones(3)), TypeError, r"class_weights must be a list .*, got tensor\(\["),
        (dict(class_weights={"a": 1.0}), TypeError, "class_weights must be a list of a number for each class"),
    ],
)
def test_bad_smoothing_and_weights(keywords, error, message):
    with pytest.raises(error, match=message):
        MinMaxEntropyLoss(**keywords)


def create(**keywords):
    torch.manual_seed(0)
    return mme.create_model("wsl_test_vit", **{"num_classes": 2, "img_size": 32, **keywords})


def test_weights_of_another_number_of_classes():
    with pytest.raises(ValueError, match="class_weights must be 2 numbers as there are classes, got 3"):
        create(class_weights=WEIGHTS)


@pytest.mark.parametrize("weights", [[1.0], WEIGHTS], ids=["fewer", "more"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_weights_of_another_number_of_classes_set_later(task, weights):
    model = create(task=task).train()
    model.criterion.class_weights = weights
    target = torch.tensor([0, 0]) if task == "multiclass" else torch.ones(2, 2)
    with pytest.raises(ValueError, match=f"class_weights must be 2 numbers as there are classes, got {len(weights)}"):
        model(torch.randn(2, 3, 32, 32), target)


def test_a_model_keeps_its_weights_and_smoothing(tmp_path):
    """Given, or set between steps; they are saved, and forgotten with the classes that they were for."""
    model = create(label_smoothing=0.1, class_weights=[1.0, 2.0])
    model.criterion.class_weights, model.criterion.label_smoothing = [3.0, 0.5], 0.2
    model.save_pretrained(tmp_path / "model")
    loaded = mme.create_model(f"local-dir:{tmp_path / 'model'}")
    assert loaded.criterion.class_weights == [3.0, 0.5] and loaded.criterion.label_smoothing == 0.2
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    torch.testing.assert_close(loaded.eval()(images, target).loss, model.eval()(images, target).loss)
    plain = create().eval()
    plain.load_state_dict(model.state_dict())  # weights of classes are settings, not parameters
    assert not plain(images, target).loss.isclose(model(images, target).loss)

    other = mme.create_model(f"local-dir:{tmp_path / 'model'}", num_classes=3)
    assert other.criterion.class_weights is None and other.criterion.label_smoothing == 0.2
    given = mme.create_model(f"local-dir:{tmp_path / 'model'}", num_classes=3, class_weights=WEIGHTS)
    assert given.criterion.class_weights == WEIGHTS


def test_reset_classifier_forgets_weights():
    """They may then be set again, to the same values too."""
    model = create(class_weights=[1.0, 2.0])
    model.reset_classifier(3)
    assert model.criterion.class_weights is None and model.settings()["class_weights"] is None
    assert model(torch.randn(2, 3, 32, 32), torch.tensor([2, 0])).loss.isfinite()
    model.reset_classifier(2)
    model.criterion.class_weights = [1.0, 2.0]
    assert model.settings()["class_weights"] == [1.0, 2.0]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_erasing_takes_weights_and_smoothing(reduction):
    """The localizer's term over the passes, computed from the passes' logits."""
    keywords = dict(label_smoothing=0.2, class_weights=[0.5, 3.0], localizer="average", classifier="average")
    model = create(erasing_steps=3, erasing_reduction=reduction, **keywords).train()
    images, target = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0])

    def localized(images):
        output = model.localize(images)
        return output.localizer_logits, output.localizer_maps, output.mask

    with torch.no_grad():
        passes = list(model.erasing.passes(images, target, localized, model.criterion.cross_entropy))
        losses = model(images, target).losses
    weights = torch.tensor([0.5, 3.0])[target]
    total, count = torch.zeros(4), torch.zeros(4)
    for each in passes:
        log_p = each.logits.log_softmax(dim=1)
        loss = -(0.8 * log_p[torch.arange(4), target] + 0.2 * log_p.mean(dim=1)) * weights
        total, count = total + loss * each.took_part, count + each.took_part
    assert 4 < count.sum() < 12  # some images left, some stayed
    expected = (total if reduction == "sum" else total / count).mean()
    torch.testing.assert_close(losses["localizer"], expected)
