"""Named settings of a model, as data. A keyword given beside a preset wins over it; a dictionary of options, without
a name, option by option: `preset="refined", mask_refinement=dict(sigma=0.6)`.

`refined`, the default
    The best-scoring settings. Gradient flows through the mask. Its area is kept small only as far as the region decides
    the class. Terms of control and border, and a margin around what the localizer sees, keep the mask from becoming a
    code for the class. Masks follow the edges of the objects. The localizer decides the class: it sees the whole image
    at its full size, with BatchNorm statistics of whole images, as in evaluation. A `Predictor` sees each image three
    times, and once more where little is marked (docs/results/passes.md); `views=Views()` is one pass. How good it is:
    docs/results/localization.md. With other heads and with erasing, whose maps are higher or larger, give the
    `sigma` of `mask_refinement` a higher value.
`paper`
    The method as arXiv 1907.12934 describes it: no gradient through the mask, no size term, and nothing of ours.
`area`
    The paper's, with gradient through the mask and an area penalty.
`reference`
    The authors' released implementation, with its quirks. Erasing is switched on between epochs (steps 4, from epoch
    1); the optimizer and the schedule are the recipe of the same name. Exactness: tests/test_golden.py.
`cam`
    Class activation mapping as a baseline (Zhou et al., CVPR 2016): average pooling, no classifier, the mask from the
    predicted class's map.
"""

from __future__ import annotations

from minmax_entropy._registry import unknown_name

DEFAULT = "refined"

_PAPER = dict(
    localizer="wildcat",
    classifier="wildcat",
    decision="classifier",
    bn_statistics="passes",
    mask_source=None,
    mask_sigma=0.5,
    mask_refinement=None,
    evaluation_scales=(1.0,),
    evaluation_flip=False,
    evaluation_zoom=None,
    reflect_margin=0.0,
    detach_mask=None,
    size_loss=None,
    size_condition=None,
    size_weight=1.0,
    control_weight=0.0,
    border_weight=0.0,
)
_AREA = dict(mask_sigma=0.28, detach_mask=False, size_loss="area")
_REFERENCE_HEAD = dict(name="wildcat", modalities=5, kmax=0.09, kmin=0.09, alpha=0.0, dropout=0.0)

PRESETS: dict[str, dict] = {
    "paper": _PAPER,
    "reference": dict(
        _PAPER,
        localizer=_REFERENCE_HEAD,
        classifier=_REFERENCE_HEAD,
        classifier_scale=0.5,
        shared_backbone=True,
        freeze_bn=False,
        bn_statistics="passes",
        backbone_init="he_fan_out",
        data_config=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"),
        mask_source="expected",
        mask_sigma=0.5,
        mask_omega=8.0,
        mask_normalization="batch",
        detach_mask=True,
        background_loss="sem",
        size_loss=None,
        erasing_sigma=10.0,
        erasing_scope="batch",
        erasing_reduction="sum",
        erasing_fallback="blank",
        erasing_normalize_trust=False,
    ),
    "area": dict(_PAPER, **_AREA),
    "refined": dict(
        _PAPER,
        **_AREA,
        size_weight=2.0,
        size_condition="sufficient",
        control_weight=1.0,
        border_weight=2.0,
        reflect_margin=0.5,
        decision="localizer",
        bn_statistics="images",
        mask_refinement=dict(
            iterations=10, dilations=(1, 2, 4, 8), temperature=0.15, scale=4, sigma=0.55, compression=0.4
        ),
        evaluation_scales=(0.75, 1.0, 1.5),
        evaluation_flip=True,
        evaluation_zoom=dict(scale=2.0, below=0.135, share=0.4),
    ),
    "cam": dict(_PAPER, localizer="average", classifier=None),
}


def resolve_preset(preset: str | None, keywords: dict) -> dict:
    """Put `keywords` on top of those of `preset`, None being the default; dictionaries without a `name` (which is that
    of a head) are merged.

    Raises:
        ValueError: unknown preset.
    """
    preset = DEFAULT if preset is None else preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    settings = PRESETS[preset]
    merged = {
        name: {**settings[name], **value}
        for name, value in keywords.items()
        if isinstance(value, dict) and isinstance(settings.get(name), dict) and "name" not in settings[name]
    }
    return {**settings, **keywords, **merged}
