"""Terms of the objective, by hand."""

import math

import pytest
import torch

from minmax_entropy import MinMaxEntropyLoss
from minmax_entropy.losses import area, log_barrier, negative_entropy, size_barrier, uniform_cross_entropy

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
