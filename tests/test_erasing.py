"""Recursive erasing: a trace worked by hand, its options, and what an image owes to its batch."""

import math

import pytest
import torch

import minmax_entropy as mme
from minmax_entropy import RecursiveErasing

# Probability of the true class by pass. A: right, surer, right but less sure than at first. B: right, wrong, right
# again. C: wrong from the start.
PROBABILITIES = torch.tensor([[0.6, 0.8, 0.55], [0.7, 0.4, 0.9], [0.3, 0.6, 0.9]], dtype=torch.float64)
# Masks [3 passes, 3 images, 1, 1, 2 pixels]
MASKS = torch.tensor(
    [
        [[0.5, 0.2], [0.9, 0.1], [0.4, 0.8]],
        [[0.1, 0.9], [0.9, 0.9], [0.6, 0.6]],
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
    ],
    dtype=torch.float64,
)[:, :, None, None]
IMAGES = torch.tensor([[10.0, 20.0], [1.0, -2.0], [4.0, 8.0]], dtype=torch.float64)[:, None, None]
TARGET = torch.tensor([0, 1, 1])

DECAY = math.exp(-1 / 10)
TRUST_A, TRUST_B = 0.8 * DECAY, 0.7


class Script:
    """A localizer that reads its answers off the table above and keeps what it was shown."""

    def __init__(self, masks=MASKS, probabilities=PROBABILITIES):
        self.masks, self.probabilities, self.shown = masks, probabilities, []

    def __call__(self, images):
        t = len(self.shown)
        self.shown.append(images)
        right = self.probabilities[:, t]
        both = torch.where(TARGET[:, None] == 0, torch.stack([right, 1 - right], 1), torch.stack([1 - right, right], 1))
        return both.log(), torch.full((3, 2, 1, 1), float(t)), self.masks[t]


def nll(*probabilities):
    return -sum(map(math.log, probabilities))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_passes_by_hand():
    script = Script()
    passes = list(RecursiveErasing(3).passes(IMAGES, TARGET, script))
    torch.testing.assert_close(
        torch.stack([p.trust for p in passes]), tensor([[0.6, 0.7, 0.0], [TRUST_A, 0.0, 0.0], [0.0, 0.0, 0.0]])
    )
    assert [p.history.tolist() for p in passes] == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert [p.took_part.tolist() for p in passes] == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    torch.testing.assert_close(torch.stack([p.loss for p in passes]), -PROBABILITIES.T.log())
    first, grown = [0.3, 0.12], [0.3, 0.9 * TRUST_A]
    accumulated = [[first, [0.63, 0.07], [0, 0]], [grown, [0.63, 0.07], [0, 0]], [grown, [0.63, 0.07], [0, 0]]]
    torch.testing.assert_close(torch.stack([p.accumulated for p in passes])[:, :, 0, 0], tensor(accumulated))
    # A is erased twice, the second time with all that has accumulated; B once; C never.
    a1 = [10 * 0.7, 20 * 0.88]
    a2 = [a1[0] * 0.7, a1[1] * (1 - 0.9 * TRUST_A)]
    b1 = [1 * 0.37, -2 * 0.93]
    shown = [[[10, 20], [1, -2], [4, 8]], [a1, b1, [4, 8]], [a2, b1, [4, 8]]]
    torch.testing.assert_close(torch.stack(script.shown)[:, :, 0, 0], tensor(shown))
    torch.testing.assert_close(passes[2].erased[:, 0, 0], tensor(shown[2]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("fallback", "mask_c"), [("first", [0.4, 0.8]), ("blank", [0.0, 0.0])])
def test_mask(fallback, mask_c, normalize):
    output = RecursiveErasing(3, fallback=fallback, normalize_trust=normalize)(IMAGES, TARGET, Script())
    mask_a, mask_b = [0.3, 0.9 * TRUST_A], [0.63, 0.07]
    if normalize:
        mask_a, mask_b = [0.3 / TRUST_A, 0.9], [0.9, 0.1]
    torch.testing.assert_close(output.mask[:, 0, 0], tensor([mask_a, mask_b, mask_c]))
    assert (output.maps == 0).all()  # of the first pass
    torch.testing.assert_close(output.logits.softmax(1)[:, 0], tensor([0.6, 0.3, 0.7]))


@pytest.mark.parametrize(
    ("scope", "reduction", "expected"),
    [
        ("image", "sum", [nll(0.6, 0.8, 0.55), nll(0.7, 0.4), nll(0.3)]),
        ("image", "mean", [nll(0.6, 0.8, 0.55) / 3, nll(0.7, 0.4) / 2, nll(0.3)]),
        ("batch", "sum", [nll(0.6, 0.8, 0.55), nll(0.7, 0.4, 0.9), nll(0.3, 0.6, 0.9)]),
        ("batch", "mean", [nll(0.6, 0.8, 0.55) / 3, nll(0.7, 0.4, 0.9) / 3, nll(0.3, 0.6, 0.9) / 3]),
    ],
)
def test_localizer_loss(scope, reduction, expected):
    output = RecursiveErasing(3, scope=scope, reduction=reduction)(IMAGES, TARGET, Script())
    torch.testing.assert_close(output.localizer_loss, tensor(expected))


def test_sigma_is_the_decay_of_trust():
    (_, second, _) = RecursiveErasing(3, sigma=2.0).passes(IMAGES, TARGET, Script())
    assert second.trust[0].item() == pytest.approx(0.8 * math.exp(-1 / 2))


def test_one_step_is_the_plain_mask():
    output = RecursiveErasing(1)(IMAGES, TARGET, Script())
    torch.testing.assert_close(output.mask, MASKS[0])
    torch.testing.assert_close(output.localizer_loss, -PROBABILITIES[:, 0].log())


@pytest.mark.parametrize(("right", "calls"), [([0.3, 0.9, 0.9], 1), ([0.9, 0.3, 0.9], 2), ([0.9, 0.3, 0.3], 2)])
def test_batch_scope_stops_when_every_history_has_ended(right, calls):
    script = Script(probabilities=tensor([right] * 3))
    RecursiveErasing(3, scope="batch")(IMAGES, TARGET, script)
    assert len(script.shown) == calls


def test_no_gradient_through_trust_and_erasing():
    masks, probabilities = MASKS.clone().requires_grad_(), PROBABILITIES.clone().requires_grad_()
    images = IMAGES.clone().requires_grad_()
    script = Script(masks, probabilities)
    output = RecursiveErasing(3, normalize_trust=False)(images, TARGET, script)
    assert not any(shown.requires_grad for shown in script.shown[1:])
    mask, loss = torch.autograd.grad(output.mask.sum(), (masks, probabilities), retain_graph=True, allow_unused=True)
    assert loss is None
    # Each pixel's mask is that of the pass that gave the maximum, times its trust; C's is that of the first pass.
    expected = torch.zeros_like(MASKS)
    expected[0, :, 0, 0] = tensor([[0.6, 0.0], [0.7, 0.7], [1.0, 1.0]])
    expected[1, 0, 0, 0, 1] = TRUST_A
    torch.testing.assert_close(mask, expected)
    (gradient,) = torch.autograd.grad(output.localizer_loss.sum(), probabilities)
    took_part = tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(gradient, -took_part / PROBABILITIES)


def test_an_image_that_has_left_may_overflow():
    """Neither its loss nor its gradient reaches the others, or itself."""
    probabilities = PROBABILITIES.clone()
    probabilities[2, 2] = 0.0  # -log 0 in a pass that C takes no part in
    probabilities.requires_grad_()
    output = RecursiveErasing(3)(IMAGES, TARGET, Script(probabilities=probabilities))
    torch.testing.assert_close(output.localizer_loss[2].item(), nll(0.3))
    (gradient,) = torch.autograd.grad(output.localizer_loss.sum(), probabilities)
    assert gradient[:2].isfinite().all()


def test_steps_can_be_set():
    erasing = RecursiveErasing()
    assert erasing.steps == 0
    with pytest.raises(ValueError, match="erasing is off: set steps to 1 or more"):
        erasing(IMAGES, TARGET, Script())
    erasing.steps = 2
    script = Script()
    erasing(IMAGES, TARGET, script)
    assert len(script.shown) == 2


@pytest.mark.parametrize("value", [-1, 1.0, "4", None, True])
def test_bad_steps(value):
    erasing = RecursiveErasing(3)
    with pytest.raises(ValueError, match="erasing_steps must be an integer of 0 or more"):
        erasing.steps = value
    assert erasing.steps == 3


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(sigma=0), "erasing_sigma must be over 0, got 0"),
        (dict(sigma=float("nan")), "erasing_sigma must be a finite number, got nan"),
        (dict(scope="pixel"), r"erasing_scope must be one of \('image', 'batch'\), got 'pixel'"),
        (dict(reduction="max"), "erasing_reduction must be one of"),
        (dict(fallback="last"), "erasing_fallback must be one of"),
    ],
)
def test_bad_options(keywords, message):
    with pytest.raises(ValueError, match=message):
        RecursiveErasing(**keywords)


# In the model


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def erasing_model(**keywords):
    torch.manual_seed(0)
    model = mme.create_model(
        "wsl_test_resnet", num_classes=3, erasing_steps=3, **{"preset": "paper", **keywords}
    ).double()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    return model


def step(model, images, target):
    model.zero_grad()
    output = model(images, target)
    output.loss.backward()
    return output, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def half_right(model, images):
    """Labels of which the localizer gets the first and the third right at its first pass."""
    return (model.localize(images).localizer_logits.argmax(dim=1) + torch.tensor([0, 1, 0, 2])) % 3


OPTIONS = [
    dict(),
    dict(detach_mask=False, size_loss="barrier"),
    dict(erasing_reduction="mean", erasing_fallback="blank", erasing_normalize_trust=False),
    dict(preset="area"),
]


@pytest.mark.parametrize("keywords", OPTIONS, ids=str)
def test_nothing_of_an_image_depends_on_its_batch(images, keywords):
    model = erasing_model(**keywords)
    target = half_right(model, images)
    whole, gradient = step(model, images, target)
    parts = [step(model, images[part], target[part]) for part in (slice(0, 1), slice(1, 4))]
    weights = (0.25, 0.75)
    torch.testing.assert_close(whole.loss, sum(w * output.loss for w, (output, _) in zip(weights, parts, strict=True)))
    torch.testing.assert_close(gradient, sum(w * part for w, (_, part) in zip(weights, parts, strict=True)))
    for field in ("mask", "logits", "background_logits", "localizer_logits", "localizer_maps"):
        joined = torch.cat([getattr(output, field) for output, _ in parts])
        torch.testing.assert_close(getattr(whole, field), joined)


def test_the_reference_depends_on_the_batch(images):
    """What the test above must be able to see."""
    model = erasing_model(preset="reference")
    target = half_right(model, images)
    whole, _ = step(model, images, target)
    parts = [step(model, images[b : b + 1], target[b : b + 1])[0] for b in range(4)]
    assert not torch.allclose(whole.mask[:1], parts[0].mask)
    assert not torch.allclose(whole.losses["localizer"], sum(part.losses["localizer"] for part in parts) / 4)


@pytest.mark.parametrize("keywords", [*OPTIONS, dict(preset="reference"), dict(preset="cam")], ids=str)
def test_every_image_misclassified(images, keywords):
    model = erasing_model(**keywords)
    wrong = (model.localize(images).localizer_logits.argmax(dim=1) + 1) % 3
    plain = model.localize(images).mask
    output, gradient = step(model, images, wrong)
    assert output.loss.isfinite() and gradient.isfinite().all()
    blank = model.erasing.fallback == "blank"
    torch.testing.assert_close(output.mask, torch.zeros_like(plain) if blank else plain)


def test_erasing_changes_the_mask_in_training_only(images):
    model = erasing_model()
    plain = model.localize(images).mask
    target = half_right(model, images)
    erased, _ = step(model, images, target)
    torch.testing.assert_close(erased.mask[1], plain[1])  # wrong at first
    assert (erased.mask[0] - plain[0]).abs().max() > 0.01
    torch.testing.assert_close(model.eval()(images, target).mask, plain)
    model.train().erasing.steps = 0
    model.backbone.eval()
    torch.testing.assert_close(model(images, target).mask, plain)
