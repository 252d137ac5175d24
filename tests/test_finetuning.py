"""Fine-tuning: frozen backbones, gradient checkpointing, learning rates by layer, weight decay, two backbones."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import minmax_entropy as mme
from minmax_entropy.engine import Recipe

K, SIZE = 3, (64, 64)
HEADS = ("localizer.", "classifier.")


class Net(nn.Module):
    """A user's backbone."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=4, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, x):
        return self.layers(x)


# drops of whole branches, none of which starts at zero
DROPS = dict(drop_path_rate=0.5, zero_init_last=False)
BACKBONES = {
    "resnet": dict(name="wsl_test_resnet", **DROPS),
    "vit": dict(name="wsl_test_vit", drop_path_rate=0.5, proj_drop_rate=0.5),
    "neck": dict(name="wsl_test_resnet", backbone_kwargs=dict(neck="fpn"), **DROPS),
    "two backbones": dict(name="wsl_test_resnet", shared_backbone=False, **DROPS),
    "checkpointed passes": dict(name="wsl_test_resnet", checkpoint_passes=True, **DROPS),
    "module": dict(name=None),
    "two modules": dict(name=None, shared_backbone=False),
}


def create(name="wsl_test_resnet", **keywords):
    torch.manual_seed(0)
    if name is None:
        return mme.WSLModel(Net(), K, **{"preset": "paper", **keywords})
    return mme.create_model(name, num_classes=K, **{"preset": "paper", **keywords})


def nets(model):
    return [backbone.net for backbone in (model.backbone, model.classifier_backbone) if backbone is not None]


def batch_norms(module):
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@pytest.fixture
def images():
    return torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target():
    return torch.tensor([2, 0, 1, 1])


def gradients(model, images, target):
    model.zero_grad()
    model(images, target).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def train_steps(model, images, target, steps=3):
    """Names of the tensors that the training changed."""
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images, target).loss.backward()
        optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# Frozen backbones


@pytest.mark.parametrize("kind", BACKBONES)
def test_frozen_backbone(kind, images, target):
    """Its parameters and statistics stay through training; all of what is not the backbone's own moves."""
    model = create(**BACKBONES[kind], freeze_backbone=True)
    assert not any(parameter.requires_grad for net in nets(model) for parameter in net.parameters())
    changed = train_steps(model.train().eval().train(), images, target)
    assert not any(".net." in name for name in changed)
    parameters = {name for name, _ in model.named_parameters()}
    assert changed & parameters == {name for name in parameters if ".net." not in name}
    if kind == "neck":
        assert any(name.startswith("backbone.neck.") for name in changed)
    assert len(nets(model)) == (2 if "two" in kind else 1)


@pytest.mark.parametrize("kind", BACKBONES)
def test_what_a_frozen_backbone_keeps_from(kind, images, target):
    """The test above can see: the same training changes the backbone that is not frozen."""
    changed = train_steps(create(**BACKBONES[kind]), images, target)
    assert any(".net." in name for name in changed)
    assert any("running_mean" in name for name in changed) == (kind != "vit")


@pytest.mark.parametrize("flag", ["freeze_backbone", "freeze_bn"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_modes(kind, flag):
    """What is frozen stays in evaluation mode, and the rest of the model follows."""
    model = create(**BACKBONES[kind], **{flag: True})
    if flag == "freeze_backbone":
        frozen = {layer for net in nets(model) for layer in net.modules()}
    else:
        frozen = {layer for net in nets(model) for norm in batch_norms(net) for layer in norm.modules()}
        assert bool(frozen) == (kind != "vit")
    for switch in (lambda: model, model.train, model.eval, lambda: model.train(True), lambda: model.train(False)):
        assert switch() is model
        assert not any(layer.training for layer in frozen)
        assert {layer.training for layer in set(model.modules()) - frozen} == {model.training}


def test_nothing_is_frozen_by_default_without_weights():
    model = create()
    assert not model.freeze_backbone and not model.freeze_bn
    assert all(layer.training for layer in model.modules())


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [({}, True), ({"preset": "refined"}, True), ({"freeze_bn": False}, False), ({"preset": "reference"}, False)],
)
def test_pretrained_batch_norm_is_frozen(tmp_path, images, target, settings, frozen):
    """By default, and in the model that is saved as well; the weights are there, and the rest of them is trained."""
    torch.manual_seed(1)
    weights = timm.create_model("test_resnet", zero_init_last=False).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    overlay = dict(file=str(tmp_path / "weights.safetensors"), hf_hub_id=None)
    model = mme.create_model(
        "wsl_test_resnet", pretrained=True, num_classes=3, img_size=32, pretrained_cfg_overlay=overlay, **settings
    )
    assert model.freeze_bn is frozen and model.config["freeze_bn"] is frozen
    assert torch.equal(model.backbone.net.conv1[0].weight, weights["conv1.0.weight"])
    changed = train_steps(model, images, target)
    assert any("running_mean" in name for name in changed) != frozen and any(".conv2." in name for name in changed)
    assert any("conv1.1.weight" in name for name in changed) != frozen
    model.save_pretrained(tmp_path / "model")
    source = f"local-dir:{tmp_path / 'model'}"
    assert mme.create_model(source).freeze_bn is frozen
    assert mme.create_model(source, freeze_bn="pretrained").freeze_bn is frozen
    assert mme.create_model(source, freeze_bn=not frozen).freeze_bn is not frozen
    assert mme.create_model(source, in_chans=1).freeze_bn is False  # its first convolution is a fresh one
    assert mme.create_model(source, in_chans=1, freeze_bn=True).freeze_bn is True
    assert mme.create_model(source, pretrained=False).freeze_bn is False  # all of it is


def test_batch_norm_of_a_module_is_trained_by_default():
    """Nothing says whether its weights are fresh."""
    assert mme.WSLModel(Net(), K, pretrained=True).freeze_bn is False
    assert mme.WSLModel(Net(), K, freeze_bn=True).freeze_bn is True


@pytest.mark.parametrize("kind", ["resnet", "vit", "module"])
def test_frozen_dropout_is_inactive(kind, images):
    model = create(**BACKBONES[kind], freeze_backbone=True).train()
    free = create(**BACKBONES[kind]).train()
    torch.testing.assert_close(model.backbone(images), model.backbone(images), rtol=0, atol=0)
    torch.testing.assert_close(model.backbone(images), free.eval().backbone(images))
    free.train()
    assert not torch.allclose(free.backbone(images), free.backbone(images))


@pytest.mark.parametrize("kind", ["resnet", "neck", "two backbones", "checkpointed passes", "module", "two modules"])
def test_frozen_batch_norm(kind, images, target):
    """Neither statistics, nor scale and shift; all else is trained."""
    model = create(**BACKBONES[kind], freeze_bn=True)
    frozen = set()
    for prefix in ("backbone", "classifier_backbone"):
        for name, layer in getattr(getattr(model, prefix), "net", nn.Module()).named_modules():
            if isinstance(layer, _BatchNorm):
                frozen |= {f"{prefix}.net.{name}.{key}" for key in layer.state_dict()}
    assert frozen and any(name.endswith("running_var") for name in frozen)
    changed = train_steps(model.eval().train(), images, target)
    assert not changed & frozen
    parameters = {name for name, _ in model.named_parameters()}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == changed & parameters
    assert parameters - frozen == changed & parameters


def test_frozen_batch_norm_normalizes_with_its_statistics(images):
    model = create(freeze_bn=True).train()
    model.backbone(images)
    features = model.backbone(images)
    torch.testing.assert_close(features[:1], model.backbone(images[:1]), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        free = create().train()
        torch.testing.assert_close(free.backbone(images)[:1], free.backbone(images[:1]), rtol=1e-4, atol=1e-5)


def test_both_flags(images, target):
    model = create(freeze_backbone=True, freeze_bn=True).train()
    assert not any(".net." in name for name in train_steps(model, images, target))


@pytest.mark.parametrize("kind", ["resnet", "vit", "neck", "two backbones", "checkpointed passes", "module"])
@pytest.mark.parametrize("detach", [False, True])
def test_gradient_through_a_frozen_backbone(kind, detach, images, target):
    """From the classifier, through the backbone, to the mask and the localizer's head."""
    weights = dict(localizer_weight=0.0, size_weight=0.0)
    options = dict(detach_mask=True) if detach else dict(preset="area")
    model = create(**{**BACKBONES[kind], **options, **weights}, freeze_backbone=True)
    found = gradients(model, images, target)
    assert all((found[name] is None) == (".net." in name) for name in found)
    assert found["classifier.to_modalities.weight"].abs().max() > 0
    assert (found["localizer.to_modalities.weight"].abs().max() > 0) == (not detach)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_heads_of_a_frozen_backbone_have_their_usual_gradient(kind, images, target):
    """Freezing takes nothing away from what is left (in evaluation mode, where both give the same features)."""
    frozen = gradients(create(**BACKBONES[kind], preset="area", freeze_backbone=True).eval(), images, target)
    free = gradients(create(**BACKBONES[kind], preset="area").eval(), images, target)
    for name in (name for name in free if name.startswith(HEADS)):
        torch.testing.assert_close(frozen[name], free[name])


def test_checkpointed_passes_of_a_frozen_backbone(images, target):
    results = []
    for checkpointed in (False, True):
        model = create(preset="area", freeze_backbone=True, erasing_steps=2, checkpoint_passes=checkpointed)
        results.append({k: v for k, v in gradients(model, images, target).items() if v is not None})
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("flag", ["freeze_backbone", "freeze_bn"])
def test_saved_and_loaded(flag, images, target, tmp_path):
    model = create("wsl_test_resnet", **{flag: True}, backbone_kwargs=dict(neck="fpn"))
    train_steps(model, images, target)
    model.save_pretrained(tmp_path / "model")
    loaded = mme.create_model(f"local-dir:{tmp_path / 'model'}")
    assert (
        loaded.config == {**model.config, "data_config": model.data_config}
        and getattr(loaded, flag)
        and loaded.training
    )
    for one in (loaded, mme.WSLModel(**model.config)):
        trained = {name: parameter.requires_grad for name, parameter in one.named_parameters()}
        assert trained == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert not any(layer.training for layer in batch_norms(one.train().backbone.net))
    torch.testing.assert_close(loaded.eval()(images).logits, model.eval()(images).logits)
    thawed = mme.create_model(f"local-dir:{tmp_path / 'model'}", **{flag: False})
    assert all(layer.training for layer in thawed.modules())
    assert any(p.requires_grad for layer in batch_norms(thawed.backbone.net) for p in layer.parameters())


@pytest.mark.parametrize("name", ["freeze_backbone", "freeze_bn", "shared_backbone", "checkpoint_passes"])
@pytest.mark.parametrize("value", ["False", 0, 1, None])
def test_flags_are_booleans(name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got {value!r}"):
        create(**{name: value})


# Checkpointing inside the backbone


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["wsl_test_vit", "wsl_test_resnet"])
def test_grad_checkpointing(name, shared, images, target):
    plain = create(name, preset="area", shared_backbone=shared)
    for layer in batch_norms(plain):
        layer.eval()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert all(net.grad_checkpointing for net in nets(saving)) and len(nets(saving)) == 2 - shared
    calls = {plain: [], saving: []}
    for model, seen in calls.items():
        for net in nets(model):
            block = net.blocks[1] if name == "wsl_test_vit" else net.layer2[0]
            block.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
    torch.testing.assert_close(gradients(saving, images, target), gradients(plain, images, target))
    assert (len(calls[plain]), len(calls[saving])) == (3, 6)  # each pass again in the backward
    saving.set_grad_checkpointing(enable=False)
    assert not any(net.grad_checkpointing for net in nets(saving))


def test_grad_checkpointing_and_statistics_of_images():
    """timm's computes blocks again in the backward, where they would count."""
    model = create("wsl_test_resnet", preset="refined")
    with pytest.raises(ValueError, match="use checkpoint_passes=True instead"):
        model.set_grad_checkpointing()
    assert not any(net.grad_checkpointing for net in nets(model))
    for name, settings in (("wsl_test_resnet", dict(freeze_bn=True)), ("wsl_test_vit", {})):
        model = create(name, preset="refined", **settings)
        model.set_grad_checkpointing()
        assert all(net.grad_checkpointing for net in nets(model))


@pytest.mark.parametrize("kind", ["wsl_dla46x_c", "module"])
def test_grad_checkpointing_that_a_backbone_has_not(kind):
    model = create(None if kind == "module" else kind)
    name = "Net" if kind == "module" else "DLA"
    with pytest.raises(ValueError, match=f"{name} has no gradient checkpointing .* checkpoint_passes=True works"):
        model.set_grad_checkpointing()


# Layers, for timm


def scales_of(groups, model):
    """Learning rate scale and weight decay by parameter name; each parameter is in exactly one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name, p in model.named_parameters() if p.requires_grad}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def layer_scales(groups, model):
    return {name: scale for name, (scale, _) in scales_of(groups, model).items()}


LAYERED = {
    "vit": dict(name="wsl_test_vit"),
    "resnet": dict(name="wsl_test_resnet"),
    "convnext": dict(name="wsl_test_convnext"),
    "neck": dict(name="wsl_test_resnet", backbone_kwargs=dict(neck="fpn")),
    "earlier level": dict(name="wsl_test_resnet", out_index=3),
    "two backbones": dict(name="wsl_test_resnet", shared_backbone=False),
    "plain cam": dict(name="wsl_test_vit", preset="cam"),
}


@pytest.mark.parametrize("kind", LAYERED)
def test_layer_decay_of_timm(kind):
    model = create(**LAYERED[kind])
    scales = layer_scales(param_groups_layer_decay(model, layer_decay=0.5), model)
    fresh = {name: scale for name, scale in scales.items() if ".net." not in name}
    own = {name: scale for name, scale in scales.items() if ".net." in name}
    assert set(fresh.values()) == {1.0}  # heads, and a neck
    assert any(name.startswith("backbone.neck.") for name in fresh) == (kind == "neck")
    assert max(own.values()) == 0.5
    steps = sorted(set(own.values()))
    assert steps == [0.5**depth for depth in range(len(steps), 0, -1)]  # no layer is left out between
    stem = "patch_embed.proj.weight" if "vit" in LAYERED[kind]["name"] else "conv1.0.weight"
    stem = "stem.0.weight" if kind == "convnext" else stem
    assert own[f"backbone.net.{stem}"] == steps[0]


def test_blocks_of_a_vit_in_order():
    model = create("wsl_test_vit")
    scales = layer_scales(param_groups_layer_decay(model, layer_decay=0.5), model)
    depth = len(model.backbone.net.blocks)
    for block in range(depth):
        of_block = {scale for name, scale in scales.items() if name.startswith(f"backbone.net.blocks.{block}.")}
        assert of_block == {0.5 ** (depth - block)}
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token"):
        assert scales.get(f"backbone.net.{name}", 0.5 ** (depth + 1)) == 0.5 ** (depth + 1)
    assert scales["backbone.net.norm.weight"] == 0.5


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnet18"])
def test_layers_are_those_of_the_bare_backbone(name, coarse):
    with torch.device("meta"):
        model, bare = create(f"wsl_{name}"), timm.create_model(name, num_classes=0)
    ours = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    theirs = group_parameters(bare, bare.group_matcher(coarse=coarse), reverse=True)
    assert set(ours) == {parameter for parameter, _ in model.named_parameters()}
    # a backbone without its head may have fewer parameters, hence fewer layers
    shared = {name: layer for name, layer in theirs.items() if f"backbone.net.{name}" in ours}
    rank = {layer: position for position, layer in enumerate(sorted(set(shared.values())))}
    expected = {f"backbone.net.{name}": rank[layer] for name, layer in shared.items()}
    assert {name: layer for name, layer in ours.items() if ".net." in name} == expected
    assert {layer for name, layer in ours.items() if ".net." not in name} == {len(rank)}
    if name == "resnet18":  # two blocks a stage
        assert len(rank) == (5 if coarse else 9)


def test_layers_of_two_backbones():
    model = create(shared_backbone=False)
    scales = layer_scales(param_groups_layer_decay(model, layer_decay=0.5), model)
    first = {name.removeprefix("backbone."): s for name, s in scales.items() if name.startswith("backbone.")}
    second = {
        name.removeprefix("classifier_backbone."): s
        for name, s in scales.items()
        if name.startswith("classifier_backbone.")
    }
    assert first == second and len(set(first.values())) > 2
    alone = create()
    single = layer_scales(param_groups_layer_decay(alone, layer_decay=0.5), alone)
    assert {name: scale for name, scale in scales.items() if name in single} == single


@pytest.mark.parametrize("kind", LAYERED)
def test_optimizer_of_timm(kind, images, target):
    model = create(**LAYERED[kind])
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.3, layer_decay=0.5)
    groups = scales_of(optimizer.param_groups, model)
    by_layer = layer_scales(param_groups_layer_decay(model, layer_decay=0.5), model)
    assert {name: scale for name, (scale, _) in groups.items()} == by_layer
    for name, (_, decay) in groups.items():
        is_kept = model.get_parameter(name).ndim <= 1 or name.endswith((".pos_embed", ".cls_token"))
        assert decay == (0.0 if is_kept else 0.3)
    gradients(model, images, target)
    optimizer.step()


def test_frozen_parameters_are_left_out_by_timm():
    model = create("wsl_test_vit", freeze_backbone=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, layer_decay=0.5)
    assert all(name.startswith(HEADS) for name in scales_of(optimizer.param_groups, model))


@pytest.mark.parametrize("shared", [True, False])
def test_no_weight_decay(shared):
    model = create("wsl_test_vit", shared_backbone=shared)
    prefixes = ["backbone.net."] if shared else ["backbone.net.", "classifier_backbone.net."]
    bare = timm.create_model("test_vit").no_weight_decay()
    assert {"pos_embed", "cls_token"} <= bare
    assert model.no_weight_decay() == {prefix + name for prefix in prefixes for name in bare}


def test_no_weight_decay_of_a_module():
    assert create(None).no_weight_decay() == set()
    assert create(None, shared_backbone=False).no_weight_decay() == set()


def test_layers_without_an_order():
    with torch.device("meta"):
        model = create("wsl_poolformer_s12")
    with pytest.raises(ValueError, match="MetaFormer has no group_matcher: its layers have no known order"):
        model.group_matcher()
    with pytest.raises(ValueError, match="Net has no group_matcher"):
        create(None).group_matcher()
    with pytest.raises(ValueError, match="Net has no group_matcher"):
        Recipe(layer_decay=0.5).build_optimizer(create(None))
    Recipe().build_optimizer(create(None))


# Recipes


def recipe_groups(model, **keywords):
    """Factor, learning rate and weight decay by parameter name; each parameter that is trained is there once."""
    optimizer = Recipe(lr=0.1, weight_decay=0.3, **keywords).build_optimizer(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(groups) == len(dict(groups))
    assert {name for name, _ in groups} == {name for name, p in model.named_parameters() if p.requires_grad}
    for _, group in groups:
        assert group["lr"] == pytest.approx(0.1 * group["lr_factor"])
    return {name: (group["lr_factor"], group["weight_decay"]) for name, group in groups}


def factors(model, **keywords):
    return {name: factor for name, (factor, _) in recipe_groups(model, **keywords).items()}


def test_factors_by_hand():
    """1 for the last layer of the backbone, one factor less for each before it; the heads have their own."""
    model = create("wsl_test_vit")
    found = factors(model, layer_decay=0.5, head_lr_factor=7.0)
    depth = len(model.backbone.net.blocks)
    for name, factor in found.items():
        if name.startswith(HEADS):
            assert factor == 7.0
        elif ".blocks." in name:
            assert factor == pytest.approx(0.5 ** (depth - 1 - int(name.split(".blocks.")[1].split(".")[0])))
        elif ".norm." in name:
            assert factor == 1.0
        else:
            assert factor == pytest.approx(0.5**depth)
    assert len(set(found.values())) == depth + 2


@pytest.mark.parametrize("kind", LAYERED)
def test_factors_are_those_of_timm(kind):
    """One step of the decay apart: timm counts the heads as the last layer."""
    model = create(**LAYERED[kind])
    theirs = layer_scales(param_groups_layer_decay(model, layer_decay=0.7), model)
    for name, factor in factors(model, layer_decay=0.7, head_lr_factor=10.0).items():
        assert factor == (pytest.approx(theirs[name] / 0.7) if ".net." in name else 10.0)


@pytest.mark.parametrize("kind", [*LAYERED, "module"])
def test_without_layer_decay(kind):
    model = create(**LAYERED[kind]) if kind in LAYERED else create(None)
    found = factors(model, head_lr_factor=10.0)
    assert found == factors(model, head_lr_factor=10.0, layer_decay=1.0)
    assert found == {name: 1.0 if ".net." in name else 10.0 for name in found}


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_bad_layer_decay(value):
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\], got"):
        Recipe(layer_decay=value)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_frozen_parameters_are_left_out(layer_decay):
    model = create(freeze_backbone=True, backbone_kwargs=dict(neck="fpn"))
    found = factors(model, layer_decay=layer_decay, head_lr_factor=10.0)
    assert set(found.values()) == {10.0} and not any(".net." in name for name in found)
    half = create(freeze_bn=True)
    assert factors(half, layer_decay=layer_decay).keys() == {n for n, p in half.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_weight_decay(shared, decay_all, layer_decay):
    model = create("wsl_test_vit", shared_backbone=shared)
    groups = recipe_groups(model, decay_all=decay_all, layer_decay=layer_decay)
    kept = set()
    for name, (_, decay) in groups.items():
        is_kept = model.get_parameter(name).ndim <= 1 or name.endswith((".pos_embed", ".cls_token"))
        assert decay == (0.0 if is_kept and not decay_all else 0.3)
        kept |= {name.split(".")[0] + "." + name.split(".")[-1]} if model.get_parameter(name).ndim > 1 else set()
    assert "backbone.pos_embed" in kept and ("classifier_backbone.pos_embed" in kept) == (not shared)


# Two backbones


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("term", ["foreground", "background"])
def test_terms_of_the_classifier_and_the_localizers_backbone(term, detach, steps, images, target):
    weights = {f"{name}_weight": float(name == term) for name in ("localizer", "foreground", "background")}
    model = create(shared_backbone=False, detach_mask=detach, erasing_steps=steps, **weights)
    found = gradients(model, images, target)
    localizer = [value for name, value in found.items() if name.startswith(("backbone.", "localizer."))]
    assert all((value == 0).all() for value in localizer) == detach
    assert any(value.abs().max() > 0 for name, value in found.items() if name.startswith("classifier_backbone."))


def test_term_of_the_localizer_and_the_classifiers_backbone(images, target):
    model = create(shared_backbone=False, foreground_weight=0.0, background_weight=0.0)
    found = gradients(model, images, target)
    assert all((value == 0).all() for name, value in found.items() if name.startswith("classifier"))
    assert all(value.abs().max() > 0 for name, value in found.items() if name.startswith("localizer."))


@pytest.mark.parametrize("name", ["wsl_test_resnet", None])
def test_state_dict_of_two_backbones(name, images):
    model = create(name, shared_backbone=False).eval()
    state = model.state_dict()
    keys = {key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    assert keys == {key.removeprefix("classifier_backbone.") for key in state if key.startswith("classifier_backbone.")}
    before = model(images)
    with torch.no_grad():
        for parameter in model.classifier_backbone.parameters():
            parameter.mul_(1.5)
    after = model(images)
    torch.testing.assert_close(after.mask, before.mask)
    assert not torch.allclose(after.logits, before.logits)
    other = create(name, shared_backbone=False).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images).logits, after.logits)


def test_a_plain_cam_has_no_second_backbone():
    model = create(preset="cam", shared_backbone=False)
    assert model.classifier_backbone is None and len(nets(model)) == 1


# Keywords of the backbone


@pytest.mark.parametrize("way", ["flat", "backbone_kwargs"])
@pytest.mark.parametrize("shared", [True, False])
def test_drop_path_rate(way, shared):
    options = dict(drop_path_rate=0.3)
    model = create(shared_backbone=shared, **(options if way == "flat" else dict(backbone_kwargs=options)))
    for net in nets(model):
        rates = [layer.drop_prob for layer in net.modules() if isinstance(layer, DropPath)]
        assert max(rates) == pytest.approx(0.3) and sorted(rates) == rates and len(rates) > 1
    assert model.config["backbone_kwargs"] == options
    again = mme.WSLModel(**model.config)
    assert max(m.drop_prob for m in again.modules() if isinstance(m, DropPath)) == pytest.approx(0.3)


def test_dropout_of_a_vit():
    model = create("wsl_test_vit", proj_drop_rate=0.2, attn_drop_rate=0.1)
    block = model.backbone.net.blocks[0]
    assert block.attn.proj_drop.p == 0.2 and block.attn.attn_drop.p == 0.1


@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
def test_unknown_keyword(name):
    with pytest.raises(TypeError, match=r"unknown keyword 'freeze_backbones'; did you mean freeze_backbone.* neither"):
        create(name, freeze_backbones=True)
    with pytest.raises(TypeError, match="takes no keywords"):
        mme.WSLModel(Net(), K, backbone_kwargs=dict(drop_path_rate=0.1))
