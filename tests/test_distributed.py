"""Distributed training on two CPU processes (gloo), with DistributedDataParallel's default settings."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import minmax_entropy as mme

pytestmark = pytest.mark.xdist_group("test_distributed")  # one pair of processes for all of them

WORLD = 2
STEPS = 3
CLASSES = 3
SWIN = dict(
    backbone="swin_tiny_patch4_window7_224",
    img_size=64,
    backbone_kwargs=dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
)

CONFIGS = {
    "cnn": dict(backbone="test_resnet"),
    "vit": dict(backbone="test_vit"),
    "swin": SWIN,
    "area and erasing": dict(backbone="test_resnet", preset="area", erasing_steps=2),
    "neck": dict(backbone="test_resnet", backbone_kwargs=dict(neck="fpn")),
    "neck of a vit": dict(backbone="test_vit", backbone_kwargs=dict(neck="fpn")),
    "level": dict(backbone="test_resnet", backbone_kwargs=dict(out_index=2)),
    "two backbones": dict(backbone="test_resnet", shared_backbone=False),
    # a last BatchNorm frozen at timm's initial 0 would keep every gradient from its block
    "freeze_bn": dict(backbone="test_resnet", freeze_bn=True, backbone_kwargs=dict(zero_init_last=False)),
    "freeze_backbone": dict(backbone="test_resnet", freeze_backbone=True),
    "no classifier": dict(backbone="test_resnet", preset="cam"),
    "unused parameters": dict(backbone="hrnet_w18_small"),
    "checkpoint_passes": dict(backbone="test_resnet", checkpoint_passes=True),
}


def build(config):
    torch.manual_seed(0)
    return mme.WSLModel(num_classes=CLASSES, **config).train()


def batch(seed, count):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def train(config, rank):
    """Parameters and BatchNorm statistics after the last step, and the names of those parameters that changed."""
    torch.manual_seed(rank)
    model = build(config)
    if rank > 0:  # the first process's weights hold
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
    start = {name: parameter.detach().clone() for name, parameter in build(config).named_parameters()}
    wrapped = DistributedDataParallel(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for step in range(STEPS):
        images, target = batch(100 * step + rank, 2)  # each process has images of its own
        output = wrapped(images, target)
        assert output.loss.isfinite()
        optimizer.zero_grad()
        output.loss.backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, missing
        optimizer.step()
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return dict(
        parameters=parameters,
        buffers={name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()},
        changed={name for name in parameters if not parameters[name].equal(start[name])},
        trained={name for name, parameter in model.named_parameters() if parameter.requires_grad},
    )


def joined_gradient(config, rank):
    """Each process has its share of one batch."""
    wrapped = DistributedDataParallel(build(config))
    images, target = batch(7, 2 * WORLD)
    share = slice(2 * rank, 2 * rank + 2)
    wrapped(images[share], target[share]).loss.backward()
    return gradients(wrapped.module)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


GRADIENTS = {
    "vit": dict(backbone="test_vit"),
    "vit, area": dict(backbone="test_vit", preset="area"),
    "swin": copy.deepcopy(SWIN),
}
for _config in GRADIENTS.values():  # noise of its own in each process
    _config["localizer"] = _config["classifier"] = dict(name="wildcat", dropout=0.0)
GRADIENTS["swin"]["backbone_kwargs"]["drop_path_rate"] = 0.0


def work(rank, folder):
    """All configurations in one process each: starting one takes longer than training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        results = {}
        for kind, function, configs in (("train", train, CONFIGS), ("gradient", joined_gradient, GRADIENTS)):
            for name, config in configs.items():
                try:
                    results[kind, name] = function(config, rank)
                except Exception as error:
                    results[kind, name] = f"{type(error).__name__}: {error}"
                failed = torch.tensor(int(isinstance(results[kind, name], str)))
                dist.all_reduce(failed)
                if failed and not isinstance(results[kind, name], str):
                    results[kind, name] = "the other process failed"
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch is built without gloo")
    folder = tmp_path_factory.mktemp("distributed")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_agree(name, results):
    ranks = [result["train", name] for result in results]
    assert not any(isinstance(rank, str) for rank in ranks), ranks
    first, *others = ranks
    assert first["trained"] == first["changed"] and first["trained"]
    for other in others:
        assert other["parameters"].keys() == first["parameters"].keys()
        different = [key for key, value in other["parameters"].items() if not value.equal(first["parameters"][key])]
        assert not different, f"{len(different)} parameters differ between processes: {different[:5]}"
    if name in ("freeze_bn", "freeze_backbone"):
        fresh = dict(build(CONFIGS[name]).named_buffers())
        assert all(value.equal(fresh[key]) for key, value in first["buffers"].items() if key.startswith("backbone"))


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_equals_that_of_the_joined_batch(name, results):
    ranks = [result["gradient", name] for result in results]
    assert not any(isinstance(rank, str) for rank in ranks), ranks
    model = build(GRADIENTS[name])
    images, target = batch(7, 2 * WORLD)
    model(images, target).loss.backward()
    expected = gradients(model)
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert scale > 1e-3
    for rank in ranks:
        assert rank.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(rank[key], expected[key], rtol=1e-3, atol=1e-5 * float(scale), msg=key)
