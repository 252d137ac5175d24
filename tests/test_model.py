"""The model: its output, its order of steps, its passes of the backbone, and what users of timm expect of it."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minmax_entropy as mme

SWIN = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), img_size=(64, 96))
KINDS = {
    "cnn": ("wsl_test_resnet", {}, 32),
    "norm-free cnn": ("wsl_test_nfnet", {}, 32),
    "vit": ("wsl_test_vit", {}, 16),
    "swin": ("wsl_swin_tiny_patch4_window7_224", SWIN, 32),
    "hybrid of one size": ("wsl_test_coatnet", dict(img_size=(64, 96)), 32),
}
K, SIZE = 3, (64, 96)


def create(name="wsl_test_resnet", **keywords):
    torch.manual_seed(0)
    return mme.create_model(name, num_classes=K, **{"preset": "paper", **keywords})


@pytest.fixture
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target():
    return torch.tensor([2, 0])


def gradients(model, images, target):
    model.zero_grad()
    model(images, target).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


class Passes(list):
    """Inputs of a backbone's passes, while the context lasts."""

    def __init__(self, backbone):
        super().__init__()
        self.hook = backbone.register_forward_pre_hook(lambda _, inputs: self.append(inputs[0]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


# Output


def test_output_fields():
    fields = {"logits", "mask", "localizer_logits", "localizer_maps", "background_logits", "losses", "loss"}
    assert set(mme.WSLOutput._fields) == fields


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind, training, images, target):
    name, keywords, stride = KINDS[kind]
    model = create(name, **keywords).train(training)
    plain, output = model(images), model(images, target)
    for each in (plain, output):
        assert each.logits.shape == each.localizer_logits.shape == (2, K)
        assert each.localizer_maps.shape == (2, K, SIZE[0] // stride, SIZE[1] // stride)
        assert each.mask.shape == (2, 1, *SIZE)
        assert 0 <= each.mask.min() and each.mask.max() <= 1
    assert plain.loss is None and plain.losses is None
    assert (plain.background_logits is None) == (not training)
    assert output.background_logits.shape == (2, K)
    assert output.loss.shape == () and set(output.losses) == {"localizer", "foreground", "background"}
    assert model.backbone.reduction == stride
    assert model.forward_features(images).shape == (2, model.num_features, SIZE[0] // stride, SIZE[1] // stride)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind, images, target):
    """DistributedDataParallel stops at parameters without one."""
    name, keywords, _ = KINDS[kind]
    assert [key for key, value in gradients(create(name, **keywords), images, target).items() if value is None] == []


@pytest.mark.parametrize("steps", [0, 2])
def test_loss_is_the_weighted_sum(images, target, steps):
    weights = dict(localizer_weight=0.5, foreground_weight=2.0, background_weight=0.25, size_weight=3.0)
    output = create(size_loss="barrier", erasing_steps=steps, **weights)(images, target)
    expected = sum(weights[f"{name}_weight"] * value for name, value in output.losses.items())
    assert set(output.losses) == {"localizer", "foreground", "background", "size"}
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("keywords", [{}, dict(mask_sigma=0.3, mask_omega=5.0, classifier_scale=0.75)], ids=str)
def test_localize_mask_split_classify(images, target, keywords):
    """Section 2 of the paper, step by step, from the model's parts."""
    model = create(**keywords).eval()
    output = model(images, target)
    scale, sigma, omega = model.classifier_scale, model.mask_sigma, model.mask_omega

    def resize(tensor, size):
        return F.interpolate(tensor, size=size, mode="bilinear", align_corners=True)

    scores, maps = model.localizer(model.backbone(images))
    expected = sum(scores.softmax(1)[:, k, None, None] * maps[:, k] for k in range(K)).unsqueeze(1)
    expected = resize(expected, SIZE)
    masks = []
    for one in expected:
        masks.append(1 / (1 + torch.exp(-omega * ((one - one.min()) / (one.max() - one.min()) - sigma))))
    mask = torch.stack(masks)
    size = math.floor(scale * SIZE[0]), math.floor(scale * SIZE[1])
    positive, _ = model.classifier(model.backbone(resize(images * mask, size)))
    negative, _ = model.classifier(model.backbone(resize(images * (1 - mask), size)))
    torch.testing.assert_close(output.localizer_logits, scores)
    torch.testing.assert_close(output.localizer_maps, maps)
    torch.testing.assert_close(output.mask, mask)
    torch.testing.assert_close(output.logits, positive)
    torch.testing.assert_close(output.background_logits, negative)
    terms = {
        "localizer": F.cross_entropy(scores, target),
        "foreground": F.cross_entropy(positive, target),
        "background": -negative.log_softmax(1).mean(),
    }
    torch.testing.assert_close(output.losses, terms)


@pytest.mark.parametrize("steps", [0, 2])
def test_control_term(images, target, steps):
    """The classifier on one image under the mask of the other, or under none, and on X- of the other image; no gradient
    goes to the mask of the other."""
    model = create(control_weight=2.0, foreground_weight=0.0, background_weight=0.0, erasing_steps=steps)
    model.backbone.eval()
    with Passes(model.backbone) as seen:
        output = model(images, target)
    assert len(seen) == 3 + max(steps - 1, 0) and output.background_logits is None
    alike = []
    for index, image in enumerate(images):
        choices = image, image * output.mask[1 - index], image * (1 - output.mask[index])
        small = [F.interpolate(one[None], (32, 48), mode="bilinear", align_corners=True)[0] for one in choices]
        alike.append([torch.allclose(seen[-1][index], one, atol=1e-6) for one in small])
    assert all(sum(one) == 1 for one in alike) and sum(one[2] for one in alike) == 1
    scores, _ = model.classifier(model.backbone(seen[-1]))
    control = next(index for index, one in enumerate(alike) if not one[2])
    terms = output.losses
    torch.testing.assert_close(terms["control"], F.cross_entropy(scores[control], target[control]))
    torch.testing.assert_close(terms["background"], -scores[1 - control].log_softmax(0).mean())
    torch.testing.assert_close(output.loss, terms["localizer"] + 2 * terms["control"])
    output.losses["control"].backward()
    assert all(parameter.grad is None for parameter in model.localizer.parameters())
    assert all(parameter.grad is not None for parameter in model.classifier.parameters())


def test_no_control_without_the_background(images, target):
    model = create(control_weight=1.0)
    with Passes(model.backbone) as seen:
        output = model(images, target, background=False)
    assert len(seen) == 2 and output.losses.keys() == {"localizer", "foreground"}


@pytest.mark.parametrize(
    "call", [lambda m, x, y: m.eval()(x, y), lambda m, x, y: m.train()(x), lambda m, x, y: m.eval()(x)]
)
def test_no_control_outside_of_training(call, images, target):
    model = create(control_weight=1.0)
    before = torch.get_rng_state()
    with Passes(model.backbone) as seen:
        output = call(model, images, target)
    assert len(seen) <= 3 and "control" not in (output.losses or {})
    assert output.background_logits is not None or output.losses is None
    assert torch.equal(torch.get_rng_state(), before)


def test_localize_is_the_first_half(images):
    model = create().eval()
    part, whole = model.localize(images), model(images)
    for field in ("mask", "localizer_logits", "localizer_maps"):
        torch.testing.assert_close(getattr(part, field), getattr(whole, field))
    assert part.logits is part.background_logits is part.loss is part.losses is None


@pytest.mark.parametrize("normalization", ["image", "batch"])
def test_evaluation_of_an_image_alone(images, normalization):
    model = create(mask_normalization=normalization).eval()
    alone = torch.cat([model(one[None]).mask for one in images])
    assert torch.allclose(model(images).mask, alone, atol=1e-5) == (normalization == "image")


def test_erasing_keeps_the_first_pass(images, target):
    model = create(erasing_steps=3)
    model.backbone.eval()
    output, first = model(images, target), model.localize(images)
    torch.testing.assert_close(output.localizer_logits, first.localizer_logits)
    torch.testing.assert_close(output.localizer_maps, first.localizer_maps)


# Passes of the backbone


@pytest.mark.parametrize(
    ("call", "passes"),
    [
        (lambda m, x, y: m.eval().localize(x), 1),
        (lambda m, x, y: m.train().localize(x), 1),
        (lambda m, x, y: m.eval()(x), 2),
        (lambda m, x, y: m.eval()(x, background=True), 3),
        (lambda m, x, y: m.eval()(x, y), 3),
        (lambda m, x, y: m.train()(x), 3),
        (lambda m, x, y: m.train()(x, y), 3),
        (lambda m, x, y: m.train()(x, y, background=False), 2),
    ],
)
@pytest.mark.parametrize("steps", [0, 4])
def test_number_of_passes(call, passes, steps, images, target):
    model = create(erasing_steps=steps)
    with Passes(model.backbone) as seen:
        output = call(model, images, target)
    erasing = output.loss is not None and model.training and steps > 0
    assert len(seen) == (passes - 1 + steps if erasing else passes)
    assert seen[0].shape[2:] == SIZE
    if passes > 1:
        assert seen[-1].shape[2:] == (32, 48)


@pytest.mark.parametrize(
    ("scale", "size"), [(0.5, (32, 48)), (1, (64, 96)), (0.67, (42, 64)), ((48, 40), (48, 40)), ([40, 64], (40, 64))]
)
def test_classifier_scale(images, scale, size):
    model = create(classifier_scale=scale).eval()
    with Passes(model.backbone) as seen:
        model(images)
    assert seen[1].shape[2:] == size


@pytest.mark.parametrize(
    ("kind", "scale", "size"),
    [("cnn", 0.1, (32, 32)), ("vit", 0.3, (16, 32)), ("vit", (17, 41), (16, 48)), ("hybrid of one size", 0.5, SIZE)],
)
def test_classifier_size_is_one_that_the_backbone_takes(images, kind, scale, size):
    name, keywords, _ = KINDS[kind]
    model = create(name, classifier_scale=scale, **keywords).eval()
    assert model.classifier_size(*SIZE) == size
    assert model(images).logits.isfinite().all()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("wsl_test_resnet", dict(drop_path_rate=0.3)),
        ("wsl_test_vit", dict(proj_drop_rate=0.3)),
        ("wsl_test_byobnet", {}),
    ],
)
def test_checkpoint_passes(name, keywords, steps, images, target):
    """The same gradients, BatchNorm buffers and drawn dropout; every pass of the backbone runs twice."""
    plain = create(name, erasing_steps=steps, localizer=dict(dropout=0.5), **keywords)
    saving = copy.deepcopy(plain)
    saving.checkpoint_passes = True
    results, passes = [], []
    for model in (plain, saving):
        torch.manual_seed(1)
        with Passes(model.backbone) as seen:
            results.append(gradients(model, images, target))
        passes.append(len(seen))
    assert passes[1] == 2 * passes[0]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(dict(saving.named_buffers()), dict(plain.named_buffers()))
    with torch.no_grad(), Passes(saving.backbone) as seen:
        saving(images, target)
    assert len(seen) == passes[0]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_statistics_of_images_alone(shared, checkpointed, steps, images, target):
    """BatchNorm's running statistics are those of one pass over the images; nothing else changes."""
    settings = dict(shared_backbone=shared, checkpoint_passes=checkpointed, erasing_steps=steps)
    models = {name: create(bn_statistics=name, **settings) for name in ("passes", "images")}
    once = copy.deepcopy(models["images"]).train()
    once.localize(images)
    results = {name: gradients(model, images, target) for name, model in models.items()}
    torch.testing.assert_close(results["images"], results["passes"])
    expected = dict(once.backbone.named_buffers())
    torch.testing.assert_close(dict(models["images"].backbone.named_buffers()), expected)
    counts = "net.bn1.num_batches_tracked"
    assert expected[counts] == 1
    assert models["passes"].backbone.get_buffer(counts) == max(steps, 1) + (2 if shared else 0)
    if not shared:
        own = {name: dict(model.classifier_backbone.named_buffers()) for name, model in models.items()}
        assert own["images"][counts] == 2
        torch.testing.assert_close(own["images"], own["passes"])


# Gradient


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("term", ["foreground", "background"])
def test_detach_mask(images, target, term, detach, steps):
    """Whether a term of the classifier reaches the localizer's head."""
    weights = {f"{name}_weight": float(name == term) for name in ("localizer", "foreground", "background")}
    model = create(detach_mask=detach, erasing_steps=steps, **weights)
    gradient = gradients(model, images, target)
    head = gradient["localizer.to_modalities.weight"]
    assert (head.abs().max() == 0) == detach
    assert gradient["classifier.to_modalities.weight"].abs().max() > 0
    assert gradient["backbone.net.conv1.0.weight"].abs().max() > 0
    assert model(images, target).mask.requires_grad == (not detach)


@pytest.mark.parametrize("size_loss", ["area", "barrier"])
def test_size_term_moves_the_localizer(images, target, size_loss):
    weights = dict(localizer_weight=0.0, foreground_weight=0.0, background_weight=0.0)
    model = create(detach_mask=False, size_loss=size_loss, **weights)
    assert gradients(model, images, target)["localizer.to_modalities.weight"].abs().max() > 0


# Backbones and heads


def test_own_backbone_for_the_classifier(images, target):
    model = create(shared_backbone=False)
    with Passes(model.backbone) as localizer, Passes(model.classifier_backbone) as classifier:
        assert all(value is not None for value in gradients(model, images, target).values())
    assert (len(localizer), len(classifier)) == (1, 2)
    shared = create()
    assert len(list(model.parameters())) == 2 * len(list(shared.parameters())) - 4  # the heads are there once


def test_own_backbone_from_a_module():
    net = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    model = mme.WSLModel(net, K, shared_backbone=False, preset="paper")
    assert model.backbone.net is net
    assert model.classifier_backbone.net is not net
    torch.testing.assert_close(model.classifier_backbone.net.weight, net.weight)


def test_no_classifier(images, target):
    """A plain CAM: the localizer's class, the map of that class."""
    model = create(classifier=None).eval()
    with Passes(model.backbone) as seen:
        output = model(images, target)
    assert len(seen) == 1
    assert set(output.losses) == {"localizer"} and output.background_logits is None
    torch.testing.assert_close(output.logits, output.localizer_logits)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.localizer_logits, target))
    top = output.logits.argmax(dim=1)
    maps = F.interpolate(output.localizer_maps[range(2), top][:, None], size=SIZE, mode="bilinear", align_corners=True)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(output.mask, torch.sigmoid(8 * ((maps - low) / (high - low) - 0.5)))
    assert all(value is not None for value in gradients(model.train(), images, target).values())


class Net(nn.Module):
    def __init__(self, in_chans=3, norm=nn.BatchNorm2d):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_chans, 12, 3, stride=4, padding=1), norm(12), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


def test_module_backbone(images, target):
    net = Net()
    net.layers[1].eval()
    model = mme.WSLModel(net, K, classifier_scale=(32, 32), preset="paper")
    assert (model.num_features, model.backbone.reduction) == (12, 4)
    assert net.training and not net.layers[1].training  # the probe puts the modes back, and leaves the statistics
    assert net.layers[1].num_batches_tracked == 0
    fresh = Net()
    mme.WSLModel(fresh, K)
    assert fresh.layers[1].num_batches_tracked == 0
    output = model(images, target)
    assert output.localizer_maps.shape == (2, K, 16, 24)
    output.loss.backward()
    assert net.layers[0].weight.grad is not None
    assert model.pretrained_cfg == {}


def test_module_backbone_that_describes_itself():
    class Described(Net):
        num_features, reduction, data_config = 12, 4, {"mean": (0.1, 0.2, 0.3)}

        def forward(self, x):
            assert x.shape[-1] != 128, "not to be probed"
            return super().forward(x)

    model = mme.WSLModel(Described(), K)
    assert (model.num_features, model.backbone.reduction) == (12, 4)
    assert model.data_config["mean"] == (0.1, 0.2, 0.3)
    assert model.data_config["std"] == pytest.approx((0.229, 0.224, 0.225))


def test_heads_as_modules(images, target):
    localizer, classifier = (mme.create_head(name, 12, K) for name in ("lse", "attention"))
    model = mme.WSLModel(Net(), K, localizer=localizer, classifier=classifier)
    assert model.localizer is localizer and model.classifier is classifier
    assert model(images, target).loss.isfinite()
    with pytest.raises(ValueError, match=r"localizer was given as a module: set model.localizer to a new one"):
        model.reset_classifier(5)


@pytest.mark.parametrize("localizer", mme.list_heads())
@pytest.mark.parametrize("classifier", mme.list_heads())
def test_every_pair_of_heads(images, target, localizer, classifier):
    model = create(localizer=localizer, classifier=classifier, detach_mask=False)
    assert all(value.isfinite().all() for value in gradients(model, images, target).values())


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
def test_autocast(images, target, name, steps, dtype):
    model = create(name, erasing_steps=steps, detach_mask=False, size_loss="barrier")
    model.backbone.eval()
    full = model(images, target)
    with torch.autocast("cpu", dtype=dtype):
        output = model(images, target)
    output.loss.backward()
    floats = [*output.losses.values(), *(part for part in output if isinstance(part, torch.Tensor))]
    assert all(part.dtype == torch.float32 for part in floats)
    torch.testing.assert_close(output.loss, full.loss, rtol=0.05, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_whole_model_in_another_precision(images, target, dtype):
    model = create(erasing_steps=2).to(dtype)
    output = model(images.to(dtype), target)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.mask.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    model.reset_classifier(5)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


# What users of timm and torch expect


@pytest.mark.parametrize("keywords", [{}, dict(shared_backbone=False), dict(classifier=None)], ids=str)
def test_state_dict_round_trip(images, keywords):
    model = create(**keywords).eval()
    other = mme.create_model("wsl_test_resnet", num_classes=K, preset="paper", **keywords).eval()
    assert not torch.equal(model(images).logits, other(images).logits)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images).logits, model(images).logits, rtol=0, atol=0)


def test_keys_of_the_state_dict():
    prefixes = {key.split(".")[0] for key in create().state_dict()}
    assert prefixes == {"backbone", "localizer", "classifier"}


def test_reset_classifier(images):
    model = create(localizer="lse", classifier=dict(name="wildcat", modalities=2)).eval()
    model.class_names = ["a", "b", "c"]
    features = model.forward_features(images)
    model.reset_classifier(7)
    output = model(images, torch.tensor([6, 0]))
    assert output.logits.shape == output.localizer_logits.shape == (2, 7)
    assert type(model.localizer).__name__ == "LSEHead" and model.classifier.modalities == 2
    assert model.num_classes == model.config["num_classes"] == 7 and model.class_names is None
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model.forward_features(images), features)


def test_reset_classifier_is_all_or_nothing():
    model = mme.WSLModel("test_resnet", K, localizer="max", classifier=mme.create_head("max", 96, K))
    before = model.localizer
    with pytest.raises(ValueError, match="classifier was given as a module"):
        model.reset_classifier(5)
    assert model.localizer is before and model.num_classes == K


def test_keywords_go_through_to_timm(images):
    model = create("wsl_test_resnet", in_chans=4, output_stride=8, drop_path_rate=0.2)
    assert model.backbone.net.conv1[0].in_channels == 4 and model.backbone.reduction == 8
    assert model.localize(torch.cat([images, images[:, :1]], 1)).localizer_maps.shape[2:] == (8, 12)
    assert any(getattr(module, "drop_prob", 0) for module in model.modules())
    assert create("wsl_test_vit", img_size=(32, 64)).data_config["input_size"] == (3, 32, 64)
    assert create(out_index=2).localize(images).localizer_maps.shape[2:] == (8, 12)


@pytest.mark.parametrize(("in_chans", "mean"), [(1, (0.2,)), (2, (0.1, 0.2)), (4, (0.1, 0.2, 0.3, 0.1))])
def test_in_chans(in_chans, mean):
    model = create(in_chans=in_chans, data_config=dict(mean=(0.1, 0.2, 0.3)))
    assert model(torch.randn(2, in_chans, 64, 64), torch.tensor([0, 1])).loss.isfinite()
    assert model.data_config["input_size"][0] == in_chans
    assert model.data_config["mean"] == pytest.approx(mean) and len(model.data_config["std"]) == in_chans


def test_pretrained_cfg_and_data_config():
    model = create("wsl_test_vit", data_config=dict(std=(1.0, 1.0, 1.0)))
    assert model.pretrained_cfg["architecture"] == "test_vit"
    assert model.data_config["mean"] == tuple(model.pretrained_cfg["mean"])
    assert model.data_config["std"] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
def test_grad_checkpointing(name, images, target):
    model = create(name)
    model.backbone.eval()
    model.backbone.net.train(name == "wsl_test_vit")
    plain = gradients(model, images, target)
    model.set_grad_checkpointing()
    assert model.backbone.net.grad_checkpointing
    torch.testing.assert_close(gradients(model, images, target), plain)
    model.set_grad_checkpointing(False)
    assert not model.backbone.net.grad_checkpointing


def test_memory_format_and_copies(images, target):
    model = create().eval()
    output = model(images, target)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.to(memory_format=torch.channels_last), target).loss, output.loss)
    torch.testing.assert_close(copy.deepcopy(model)(images, target).loss, output.loss)


def test_names_of_hugging_face(images, target):
    """`pixel_values` and `labels` are `images` and `target`; each argument is given once."""
    model = create().eval()
    expected, output = model(images, target), model(pixel_values=images, labels=target)
    assert output.loss.equal(expected.loss) and output.mask.equal(expected.mask)
    assert model(pixel_values=images).loss is None
    for keywords, message in (
        (dict(images=images, pixel_values=images), "images and pixel_values are two names of one argument"),
        (dict(images=images, target=target, labels=target), "target and labels are two names of one argument"),
        (dict(labels=target), "images must be a tensor .* got NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            model(**keywords)


def test_config_takes_what_trainers_note():
    """As Hugging Face's `Trainer` and its callbacks use it; what they note is no keyword."""
    model = create(localizer=nn.Identity(), classifier=None)
    model.config.use_cache = False
    assert "use_cache" not in model.config and mme.WSLModel(**model.config).config == model.config
    assert type(model.config.to_dict()) is dict and model.config.to_dict() == model.config
    read = json.loads(model.config.to_json_string())
    assert (read["backbone"], read["num_classes"], read["localizer"]) == ("test_resnet", K, "Identity()")
    assert copy.deepcopy(create()).config == create().config


def test_config_rebuilds_the_model(images):
    model = create(preset="area", localizer="lse", erasing_steps=2, drop_path_rate=0.1).eval()
    again = mme.WSLModel(**model.config).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    assert again.config == model.config
    assert (again.mask_sigma, again.criterion.size_loss, again.erasing.steps) == (0.28, "area", 2)


@pytest.mark.parametrize("shared", [True, False])
def test_he_initialization(shared):
    model = create(backbone_init="he_fan_out", shared_backbone=shared)
    nets = [model.backbone.net] if shared else [model.backbone.net, model.classifier_backbone.net]
    for net in nets:
        weight = net.layer3[0].conv1.weight
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
    if not shared:
        assert not torch.equal(nets[0].conv1[0].weight, nets[1].conv1[0].weight)


def test_the_localizer_decides(tmp_path):
    """The same training; in evaluation its scores, for one pass of the backbone."""
    images, target = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    model = create(preset="area", decision="localizer")
    output = model(images, target)
    torch.manual_seed(0)
    expected = create(preset="area")(images, target)
    torch.testing.assert_close(output.losses, expected.losses)
    torch.testing.assert_close(output.logits, output.localizer_logits)
    assert not output.logits.equal(expected.logits) and output.background_logits.equal(expected.background_logits)
    model.eval()
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    output = model(images)
    assert output.logits.equal(output.localizer_logits) and len(passes) == 1 and output.background_logits is None
    assert model(images, background=True).background_logits is not None and len(passes) == 4
    model.decision = "classifier"
    assert not model(images).logits.equal(output.logits)
    assert mme.create_model(f"local-dir:{model.save_pretrained(tmp_path / 'model')}").decision == "classifier"
    with pytest.raises(ValueError, match="decision must be one of"):
        create(decision="both")
    with pytest.raises(ValueError, match="decision must be one of"):
        model.decision = "locolizer"
