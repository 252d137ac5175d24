"""From class activation maps to the mask, and from the image to its two regions."""

import math

import pytest
import torch

from minmax_entropy.mask import (
    control_mask,
    min_max_normalize,
    one_half,
    resize,
    soft_mask,
    split_regions,
    weighted_map,
)
from minmax_entropy.tasks import Multiclass, Multilabel


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_expected_map():
    maps, logits = random(2, 3, 4, 5), random(2, 3, seed=1)
    expected = torch.zeros(2, 1, 4, 5, dtype=torch.float64)
    for b in range(2):
        total = sum(math.exp(v) for v in logits[b].tolist())
        for k in range(3):
            expected[b, 0] += math.exp(logits[b, k].item()) / total * maps[b, k]
    torch.testing.assert_close(weighted_map(maps, Multiclass.probabilities(logits)), expected)


def test_predicted_map():
    maps = random(2, 3, 4, 5)
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]], dtype=torch.float64)
    picked = weighted_map(maps, Multiclass.predicted(logits))
    torch.testing.assert_close(picked, torch.stack([maps[0, 1], maps[1, 0]]).unsqueeze(1))


def test_predicted_map_of_several_classes():
    maps = random(3, 3, 4, 5)
    logits = torch.tensor([[0.5, -2.0, 1.0], [-3.0, -1.0, -2.0], [-1.0, -1.0, 0.0]], dtype=torch.float64)
    picked = weighted_map(maps, Multilabel.predicted(logits))
    torch.testing.assert_close(picked[:, 0], torch.stack([maps[0, 0] + maps[0, 2], maps[1, 1], maps[2, 2]]))


def test_maps_agree_for_a_certain_prediction():
    maps, logits = random(2, 3, 4, 5), torch.tensor([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]], dtype=torch.float64)
    expected, predicted = Multiclass.probabilities(logits), Multiclass.predicted(logits)
    torch.testing.assert_close(weighted_map(maps, expected), weighted_map(maps, predicted))


def test_resize_aligns_corners():
    small = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    torch.testing.assert_close(resize(small, (2, 4)), torch.tensor([[[[0.0, 1, 2, 3], [6, 7, 8, 9]]]]))
    assert resize(small, (2, 2)) is small


def test_min_max_normalize_per_image():
    maps = torch.tensor([[[[1.0, 3.0, 5.0]]], [[[-2.0, -1.0, 2.0]]]])
    expected = torch.tensor([[[[0.0, 0.5, 1.0]]], [[[0.0, 0.25, 1.0]]]])
    torch.testing.assert_close(min_max_normalize(maps), expected)
    torch.testing.assert_close(min_max_normalize(maps * 1000 - 7), expected)  # a positive affine map changes nothing


def test_min_max_normalize_over_the_batch():
    maps = torch.tensor([[[[1.0, 3.0]]], [[[-2.0, 8.0]]]])
    torch.testing.assert_close(min_max_normalize(maps, "batch"), torch.tensor([[[[0.3, 0.5]]], [[[0.0, 1.0]]]]))


def test_image_normalization_does_not_look_at_neighbours():
    maps = random(3, 1, 4, 4)
    alone = torch.cat([min_max_normalize(maps[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(min_max_normalize(maps), alone, rtol=0, atol=0)
    assert not torch.allclose(min_max_normalize(maps, "batch"), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("value", [0.0, 3.7, -1e-30, 1e4])
def test_flat_map_is_zero_with_finite_gradients(value, over, dtype):
    maps = torch.full((2, 1, 3, 3), value, dtype=dtype, requires_grad=True)
    normalized = min_max_normalize(maps, over)
    assert (normalized == 0).all() and normalized.dtype == dtype
    soft_mask(normalized).sum().backward()
    assert maps.grad.isfinite().all()


def test_a_flat_map_leaves_the_others_alone():
    maps = torch.cat([torch.ones(1, 1, 3, 3), random(1, 1, 3, 3, dtype=torch.float32)])
    torch.testing.assert_close(min_max_normalize(maps)[1:], min_max_normalize(maps[1:]), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.1, -3.3, 1234.5])
@pytest.mark.parametrize("size", [(64, 96), (51, 47), (224, 224)])
def test_a_resized_flat_map_is_flat(value, size):
    assert (min_max_normalize(resize(torch.full((1, 1, 7, 5), value), size)) == 0).all()


def test_rounding_noise_is_flat_but_small_ranges_are_not():
    noise = 100 + torch.tensor([[[[0.0, 7.6e-6]]]])  # one unit in the last place at 100
    assert noise[..., 1] > noise[..., 0]
    assert (min_max_normalize(noise) == 0).all()
    torch.testing.assert_close(min_max_normalize(torch.tensor([[[[1e-6, 2e-6]]]])), torch.tensor([[[[0.0, 1.0]]]]))


def test_soft_mask_values():
    values = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = [1 / (1 + math.exp(-8 * (v - 0.5))) for v in values.tolist()]
    torch.testing.assert_close(soft_mask(values), torch.tensor(expected, dtype=torch.float64))
    assert soft_mask(torch.tensor(0.28), sigma=0.28, omega=50.0) == 0.5
    torch.testing.assert_close(soft_mask(torch.tensor(1.0), 0.3, 4.0), torch.tensor(1 / (1 + math.exp(-2.8))))


def test_split_regions():
    images, mask = random(2, 3, 4, 4, dtype=torch.float32), torch.rand(2, 1, 4, 4)
    relevant, irrelevant = split_regions(images, mask)
    torch.testing.assert_close(relevant, torch.stack([images[:, c] * mask[:, 0] for c in range(3)], dim=1))
    torch.testing.assert_close(relevant + irrelevant, images)
    half, _ = split_regions(images.half(), mask)
    assert half.dtype == torch.float16


def test_control_masks_are_of_the_whole_image_or_of_the_one_before_or_its_rest():
    masks = torch.rand(96, 1, 2, 3, requires_grad=True)
    control = control_mask(masks)
    others = torch.cat([masks[-1:], masks[:-1]]).detach()
    kinds = [(control == kind).flatten(1).all(dim=1) for kind in (torch.ones_like(others), others, 1 - others)]
    assert (torch.stack(kinds).sum(dim=0) == 1).all()
    assert all(13 < kind.sum() < 51 for kind in kinds)  # a third of them; less than a chance in 10,000 to be outside
    assert not control.requires_grad


@pytest.mark.parametrize(("count", "expected"), [(1, {0, 1}), (2, {1}), (5, {2, 3}), (8, {4})])
def test_one_half_of_a_batch(count, expected):
    found = [one_half(torch.zeros(count, 3, 2, 2)) for _ in range(100)]
    assert {int(half.sum()) for half in found} == expected
    assert (torch.stack(found).any(dim=0)).all() and not torch.stack(found).all(dim=0).any()


def test_the_image_of_a_batch_of_one_is_its_own_control():
    assert all((control_mask(torch.rand(1, 1, 2, 3)) == 1).all() for _ in range(20))


def test_gradient_through_the_whole_mask():
    def chain(maps, logits):
        return soft_mask(min_max_normalize(resize(weighted_map(maps, logits.softmax(dim=1)), (5, 7))))

    inputs = random(2, 3, 3, 4).requires_grad_(), random(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(chain, inputs)


def test_unknown_normalization():
    with pytest.raises(ValueError, match=r"normalization must be one of \('image', 'batch'\), got 'pixel'"):
        min_max_normalize(torch.zeros(1, 1, 2, 2), "pixel")
