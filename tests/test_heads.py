"""Heads: poolings against independent implementations, folding of the modalities, registry and options."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import minmax_entropy as mme
from minmax_entropy.heads import AverageHead, ClassMapHead, LSEHead, MaxHead, WildcatHead, create_head, register_head
from minmax_entropy.heads.pooling import average_pool, lse_pool, max_pool
from minmax_entropy.heads.wildcat import pooled_positions, wildcat_pool


@pytest.fixture
def maps():
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def naive(maps, function):
    """`function` of each map's positions, as a list of numbers, one map at a time."""
    array = maps.detach().numpy()
    scores = [
        [function([float(v) for v in array[b, k].ravel()]) for k in range(maps.shape[1])] for b in range(len(maps))
    ]
    return torch.tensor(np.array(scores))


def naive_wildcat(kmax, kmin, alpha):
    def score(values):
        values = sorted(values, reverse=True)
        return sum(values[:kmax]) / kmax + alpha * sum(values[len(values) - kmin :]) / kmin

    return score


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (average_pool, lambda v: sum(v) / len(v)),
        (max_pool, max),
        (lse_pool, lambda v: math.log(sum(math.exp(10 * x) for x in v) / len(v)) / 10),
        (lambda m: lse_pool(m, r=0.5), lambda v: 2 * math.log(sum(math.exp(0.5 * x) for x in v) / len(v))),
    ],
    ids=["average", "max", "lse", "lse r=0.5"],
)
def test_pools(maps, pool, expected):
    torch.testing.assert_close(pool(maps), naive(maps, expected))


@pytest.mark.parametrize("alpha", [0.0, 0.7, -1.0])
@pytest.mark.parametrize(
    ("kmax", "kmin", "highest", "lowest"),  # 20 positions
    [(0.09, 0.09, 2, 2), (0.3, 0.15, 6, 3), (1, 1, 1, 1), (1.0, 1.0, 20, 20), (7, 3.0, 7, 3), (50, 0.001, 20, 1)],
)
def test_wildcat_pool(maps, kmax, kmin, highest, lowest, alpha):
    expected = naive(maps, naive_wildcat(highest, lowest, alpha))
    torch.testing.assert_close(wildcat_pool(maps, kmax, kmin, alpha), expected)


def test_wildcat_without_lowest_positions(maps):
    torch.testing.assert_close(wildcat_pool(maps, 0.3, kmin=0, alpha=0.7), wildcat_pool(maps, 0.3, alpha=0.0))


@pytest.mark.parametrize(
    ("fraction", "positions", "count"),
    [
        (0.09, 49, 4),
        (0.5, 5, 2),  # half to even
        (0.5, 7, 4),
        (0.09, 5, 1),  # round gives 0, which has no mean
        (0.09, 1, 1),
        (1.0, 49, 49),
        (1, 49, 1),
        (30, 49, 30),
        (2.0, 49, 2),
        (60, 49, 49),
    ],
)
def test_pooled_positions(fraction, positions, count):
    assert pooled_positions(fraction, positions) == count


def test_wildcat_gradient_goes_to_the_extremes(maps):
    maps = maps.requires_grad_()
    wildcat_pool(maps, kmax=2, kmin=2, alpha=0.5).sum().backward()
    order = maps.flatten(2).argsort(dim=-1, descending=True)
    expected = torch.zeros_like(maps).flatten(2).scatter(-1, order[..., :2], 1 / 2).scatter(-1, order[..., -2:], 0.25)
    torch.testing.assert_close(maps.grad.flatten(2), expected)


def test_wildcat_dropout_drops_pooled_values(maps):
    """Inverted dropout on each of the pooled values, in training only; the mean over draws is the plain score."""
    ones = torch.ones(1, 1, 10, 10)
    torch.manual_seed(0)
    draws = torch.cat([wildcat_pool(ones, kmax=20, dropout=0.75, training=True) for _ in range(2000)])
    dropped = draws * 20 / 4  # a value that is kept counts 1 / (1 - 0.75) = 4
    torch.testing.assert_close(dropped, dropped.round())
    assert draws.mean().item() == pytest.approx(1, abs=0.02)
    assert draws.var().item() == pytest.approx(0.75 / 0.25 / 20, rel=0.15)  # of 20 independent draws
    torch.testing.assert_close(wildcat_pool(maps, 0.3, dropout=0.75), wildcat_pool(maps, 0.3))


def test_lse_limits(maps):
    torch.testing.assert_close(lse_pool(maps, 1e-6), average_pool(maps), atol=1e-5, rtol=0)
    torch.testing.assert_close(lse_pool(maps, 1e4), max_pool(maps), atol=1e-3, rtol=0)
    scores = [lse_pool(maps, r) for r in (0.1, 1.0, 10.0)]
    assert (average_pool(maps) < scores[0]).all() and (scores[0] < scores[1]).all() and (scores[1] < scores[2]).all()
    assert lse_pool(torch.full((1, 1, 4, 4), 1e4), r=10.0).item() == pytest.approx(1e4)  # no overflow


def explicit_maps(features, weight, bias, num_classes, modalities):
    """K * M maps, position by position, then the mean over the modalities of each class."""
    every = torch.einsum("od,bdhw->bohw", weight[:, :, 0, 0], features) + bias[None, :, None, None]
    return torch.stack([every[:, k * modalities : (k + 1) * modalities].mean(dim=1) for k in range(num_classes)], dim=1)


@pytest.mark.parametrize("modalities", [1, 5])
@pytest.mark.parametrize("head", [WildcatHead, AverageHead, MaxHead, LSEHead])
def test_folded_modalities_are_the_explicit_ones(head, modalities):
    torch.manual_seed(0)
    head = head(6, 3, modalities=modalities).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = [features, head.to_modalities.weight, head.to_modalities.bias]
    assert head.to_modalities.weight.shape == (3 * modalities, 6, 1, 1)
    scores, maps = head(features)
    expected = explicit_maps(*parameters, 3, modalities)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(scores, head.pool(expected))
    upstream = torch.randn_like(maps)
    gradients = torch.autograd.grad((maps * upstream).sum(), parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * upstream).sum(), parameters))


def test_attention_is_a_distribution_over_positions():
    torch.manual_seed(0)
    head = create_head("attention", 6, 3).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    scores, maps = head(features)
    attention = maps / 20
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 3, dtype=torch.float64))
    assert (attention > 0).all() and (maps == maps[:, :1]).all()
    pooled = torch.stack([(features[b] * attention[b, 0]).sum(dim=(1, 2)) for b in range(2)])
    torch.testing.assert_close(scores, head.to_scores(pooled))


def test_attention_of_equal_positions_is_flat():
    _, maps = create_head(dict(name="attention", hidden=8), 6, 3)(torch.ones(1, 6, 3, 3))
    torch.testing.assert_close(maps, torch.ones(1, 3, 3, 3))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (4, 5)])
@pytest.mark.parametrize("name", mme.list_heads())
def test_shapes_and_gradients(name, size):
    head = create_head(name, 8, 3)
    scores, maps = head(torch.randn(2, 8, *size))
    assert scores.shape == (2, 3) and maps.shape == (2, 3, *size)
    scores.logsumexp(dim=1).sum().backward()
    missing = [key for key, parameter in head.named_parameters() if parameter.grad is None]
    assert not missing and all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_registry():
    assert mme.list_heads() == sorted(mme.list_heads())
    assert {"attention", "average", "lse", "max", "wildcat"} <= set(mme.list_heads())


def test_create_head():
    head = create_head(dict(modalities=2, alpha=0.7), 8, 3)  # "wildcat" where no name is given
    assert isinstance(head, WildcatHead) and (head.modalities, head.alpha, head.kmax) == (2, 0.7, 0.09)
    own = nn.Identity()
    assert create_head(own, 8, 3) is own
    spec = dict(name="lse", r=2.0)
    create_head(spec, 8, 3)
    assert spec == dict(name="lse", r=2.0)


def test_register_head(monkeypatch):
    monkeypatch.setattr("minmax_entropy.heads._HEADS._factories", dict(mme.heads._HEADS._factories))

    @register_head
    class SumHead(ClassMapHead):
        def pool(self, maps):
            return maps.sum(dim=(2, 3))

    assert "SumHead" in mme.list_heads()
    model = mme.create_model("wsl_test_resnet", num_classes=2, localizer=dict(name="SumHead", modalities=2))
    output = model.eval().localize(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(output.localizer_logits, output.localizer_maps.sum(dim=(2, 3)))
    with pytest.raises(ValueError, match="head 'max' is already registered by"):
        register_head(SumHead, name="max")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("wildcats", ValueError, "unknown head 'wildcats'; did you mean wildcat"),
        (dict(name="zzz"), ValueError, "unknown head 'zzz'; known: attention, average"),
        (dict(name="wildcat", kmx=0.1), TypeError, r"'kmx'.*its options are \['modalities', 'kmax'"),
        (dict(name="max", kmax=0.1), TypeError, r"head 'max'.*'kmax'.*\['modalities'\]"),
        (3, TypeError, "a head is a name, a dictionary of options or a module, got int"),
        (None, TypeError, "got NoneType"),
        (dict(modalities=0), ValueError, "modalities must be an integer of 1 or more, got 0"),
        (dict(modalities=2.0), ValueError, "modalities must be an integer"),
        (dict(modalities=True), ValueError, "modalities must be an integer"),
        (dict(kmax=0), ValueError, "kmax must be over 0"),
        (dict(kmax=float("nan")), ValueError, "kmax must be a finite number"),
        (dict(kmin=-1), ValueError, "kmin must be 0 or more"),
        (dict(dropout=1.0), ValueError, r"dropout must be in \[0, 1\)"),
        (dict(name="lse", r=0), ValueError, "r must be over 0"),
    ],
)
def test_bad_options(spec, error, message):
    with pytest.raises(error, match=message):
        create_head(spec, 8, 3)
