"""Faithfulness of masks: the classes that classifiers find in the marked region, in the rest, and under the masks of
other images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from minmax_entropy._modes import in_evaluation
from minmax_entropy.data import Preprocess
from minmax_entropy.data.preprocess import preprocess_for
from minmax_entropy.wsl import WSLModel

BLUR = 10.0  # standard deviation in pixels of the image that insertion starts from; RISE has 5


@dataclasses.dataclass(frozen=True)
class Probes:
    """Questions to classifiers about the regions that masks mark.

    The model's own classifier sees the whole image, X+, and the image under the mask of an image of another class: if
    it then answers with that other class, it reads the class off the mask. The judge was trained without masks, and
    can't have agreed with the localizer on anything: it sees the whole image, the marked pixels alone, and the other
    pixels alone; removed pixels are 0 in the normalized image, the mean colour.

    Args:
        judge: a plain classifier of the same classes, a model without a classifier of its own (`preset="cam"`); None
            skips its questions.
        name: name of the judge, for tables.
        rival: another model with masks (`GradCAM(judge, "layer_cam")`): the judge also sees the highest pixels of its
            masks, as many as the model has marked.
        curve_steps: steps of the insertion and deletion curves (Petsiuk et al., "RISE", BMVC 2018), each of which takes
            two passes of the judge; 0 for none.

    Raises:
        ValueError: the judge was trained with masks, or `curve_steps` is negative.
    """

    judge: WSLModel | None = None
    name: str = "judge"
    rival: torch.nn.Module | None = None
    curve_steps: int = 0

    def __post_init__(self) -> None:
        if self.judge is not None and self.judge.classifier is not None:
            raise ValueError(
                "a judge must never have met a mask: take a plain classifier, such as a model that was trained with "
                'preset="cam"'
            )
        if self.curve_steps < 0:
            raise ValueError(f"curve_steps must be 0 or more, got {self.curve_steps!r}")
        if self.judge is None and (self.rival is not None or self.curve_steps):
            raise ValueError("a rival and curves need a judge")


SWAPPED = "classifier_swapped"
# Figures of an image, in the order of a table.
PROBED = (
    *("classifier_whole", "classifier_foreground", SWAPPED),
    *("judge_whole", "judge_foreground", "judge_background", "rival_foreground", "rival_background"),
    *("insertion", "deletion"),
)


class Prober:
    """Evaluator of `Probes`, one image after the other.

    Args:
        model: model whose masks are probed.
        probes: the questions.
        preprocess: preprocessing of the model's images. Classifiers see whole images, even if masks are computed from
            tiles, and if this leaves images at their own size, at the size of their `data_config`.
        threshold: a pixel is marked where the mask is at least this.
    """

    def __init__(self, model: WSLModel, probes: Probes, preprocess: Preprocess | None, threshold: float) -> None:
        self.model, self.probes, self.threshold = model, probes, threshold
        side = None if preprocess is None else preprocess.short_side
        self.preprocess = preprocess_for(model) if side is None else preprocess
        self.judge_preprocess = None if probes.judge is None else preprocess_for(probes.judge, side)
        self._masks: dict[int, np.ndarray] = {}  # the latest mask of each of the two latest classes

    @torch.inference_mode()
    def __call__(self, image: Image.Image, target: int, mask: np.ndarray) -> dict[str, float]:
        """Return figures of an image, 1 if right and 0 if wrong; `mask` is `[H, W]` in [0, 1], at the image's size.

        `classifier_swapped` is 1 if the classifier's `swapped_answer` is `swapped_with`, the class of the image whose
        mask was used. All three are left out until an image of another class has been seen.
        """
        figures: dict[str, float] = {}
        if self.model.classifier is not None:
            figures |= self._of_the_classifier(image, target, mask)
        if self.probes.judge is not None:
            with in_evaluation(self.probes.judge):
                figures |= self._of_the_judge(image, target, mask)
        latest = {label: other for label, other in self._masks.items() if label != target}
        self._masks = dict([*latest.items()][-1:]) | {target: mask}
        return figures

    def _of_the_classifier(self, image: Image.Image, target: int, mask: np.ndarray) -> dict[str, float]:
        x = self.preprocess(image)
        regions = [x, x * _as_input(mask, image, self.preprocess)]
        other = next((label for label in reversed(self._masks) if label != target), None)
        if other is not None:
            regions.append(x * _as_input(self._masks[other], image, self.preprocess))
        device = next(self.model.parameters()).device
        answers = self.model.classify(torch.stack(regions).to(device)).argmax(dim=1).tolist()
        figures = dict(zip(PROBED[:2], (float(answer == target) for answer in answers), strict=False))
        if other is not None:
            answer = answers[2]
            figures |= {SWAPPED: float(answer == other), "swapped_with": other, "swapped_answer": answer}
        return figures

    def _of_the_judge(self, image: Image.Image, target: int, mask: np.ndarray) -> dict[str, float]:
        judge, preprocess = self.probes.judge, self.judge_preprocess
        x = preprocess(image)
        marked = mask >= self.threshold
        cuts = {"judge_foreground": marked, "judge_background": ~marked}
        if self.probes.rival is not None:
            found = self._rival_mask(image)
            first = np.zeros(found.size, dtype=bool)
            first[np.argsort(-found, axis=None, kind="stable")[: np.count_nonzero(marked)]] = True
            first = first.reshape(found.shape)
            cuts |= {"rival_foreground": first, "rival_background": ~first}
        regions = [x, *(x * (_as_input(cut.astype(np.float32), image, preprocess) >= 0.5) for cut in cuts.values())]
        answers = _scores(judge, torch.stack(regions)).argmax(dim=1).tolist()
        figures = dict(zip(("judge_whole", *cuts), (float(answer == target) for answer in answers), strict=True))
        if self.probes.curve_steps:
            figures |= insertion_deletion(judge, x, _as_input(mask, image, preprocess), target, self.probes.curve_steps)
        return figures

    def _rival_mask(self, image: Image.Image) -> np.ndarray:
        x = self.judge_preprocess(image)[None].to(next(self.probes.judge.parameters()).device)
        with in_evaluation(self.probes.rival):
            mask = self.probes.rival(x).mask[0].float().cpu()
        return self.judge_preprocess.restore(mask, (image.height, image.width))[0].numpy()


def insertion_deletion(judge: WSLModel, x: Tensor, mask: Tensor, target: int, steps: int) -> dict[str, float]:
    """Compute the areas under the true class's probability as pixels are added or removed, in order of the mask.

    Petsiuk, Das and Saenko, "RISE", BMVC 2018: the highest pixels of the mask go first, equal ones row by row.
    `insertion` starts from the blurred image, `deletion` ends with a blank one. A mask that marks what the judge relies
    on has a high insertion and a low deletion.

    Args:
        judge: a plain classifier.
        x: normalized image `[C, H, W]`.
        mask: `[1, H, W]` or `[H, W]` in [0, 1].
        target: index of the true class.
        steps: number of equal parts in which pixels are added or removed, 1 or more.

    Returns:
        `insertion` and `deletion` in [0, 1], by the trapezoidal rule.
    """
    order = mask.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    shares = torch.linspace(0, 1, steps + 1)[:, None, None, None]
    there = (rank.view(1, 1, *x.shape[-2:]) < (shares * len(order)).round()).to(x.dtype)  # [steps + 1, 1, H, W]
    inserted = x * there + _blurred(x) * (1 - there)
    deleted = x * (1 - there)
    probability = _scores(judge, torch.cat([inserted, deleted])).softmax(dim=1)[:, target].double()
    areas = [float(torch.trapezoid(part) / steps) for part in probability.split(steps + 1)]
    return dict(zip(("insertion", "deletion"), areas, strict=True))


def _blurred(x: Tensor) -> Tensor:
    radius = min(round(2 * BLUR), *(side - 1 for side in x.shape[-2:]))
    return gaussian_blur(x, [2 * radius + 1] * 2, [BLUR] * 2)


def _scores(judge: WSLModel, images: Tensor) -> Tensor:
    return judge.class_maps(images.to(next(judge.parameters()).device))[0].cpu()


def _as_input(mask: np.ndarray, image: Image.Image, preprocess: Preprocess) -> Tensor:
    """Return a mask `[H, W]` in [0, 1] as `[1, H', W']`, scaled and padded like the image that the network sees."""
    picture = Image.fromarray(mask.astype(np.float32))  # not 8 bits, which would tie pixels that insertion orders
    if picture.size != image.size:
        picture = picture.resize(image.size, Image.Resampling.BILINEAR)
    return torch.tensor(preprocess.pixels(picture)).clamp(0, 1)[None]
