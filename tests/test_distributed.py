"""Distributed training on two CPU processes (gloo), with DistributedDataParallel's default settings."""

import copy
import json
import os
import unittest.mock
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

import minmax_entropy as mme
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import Recipe, fit
from minmax_entropy.engine.checkpoints import Progress

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
    return mme.WSLModel(num_classes=CLASSES, **{"preset": "paper", **config}).train()


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


class SyncedBatchNorm(nn.BatchNorm2d):
    """Statistics over all processes, for CPUs: torch has its own for accelerators alone."""

    def forward(self, features):
        if not (self.training and dist.is_initialized()):
            return super().forward(features)
        count = dist.get_world_size() * features.numel() / features.shape[1]
        mean = all_reduce(features.sum(dim=(0, 2, 3))) / count
        centred = features - mean[:, None, None]
        variance = all_reduce((centred**2).sum(dim=(0, 2, 3))) / count
        normalized = centred * (variance + self.eps).rsqrt()[:, None, None]
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


def joined_batch(config):
    """A batch whose second half is recognized at the first pass, while the first half is not."""
    images, target = batch(7, 2 * WORLD)
    if config.get("erasing_steps"):
        with torch.no_grad():
            model = build(config).eval()
            for module in model.modules():  # as in training: by the statistics of the batch
                if isinstance(module, nn.BatchNorm2d):
                    module.train()
            found = model.localize(images).localizer_logits.argmax(dim=1)
        target = (found + torch.tensor([1] * WORLD + [0] * WORLD)) % CLASSES
    return images, target


def joined_gradient(config, rank):
    """Each process has its share of one batch; the gradient, and the passes that it took."""
    images, target = joined_batch(config)
    wrapped = DistributedDataParallel(build(config))
    share = slice(2 * rank, 2 * rank + 2)
    wrapped(images[share], target[share]).loss.backward()
    return gradients(wrapped.module)


def train_by_the_engine(config, rank):
    """`fit` in each process; the weights and the log."""
    model, result = fitted(config)
    return dict(weights=dict(model.state_dict()), log=result.log, is_main=result.is_main)


def go_on_after_an_interruption(config, rank):
    """`fit` once as it is and once stopped at a checkpoint within the second epoch, and resumed: weights and logs."""
    results = []
    for stops in (False, True):
        output = config["folder"] / f"stops_{stops}"
        if stops:
            with unittest.mock.patch.object(Progress, "state_dict", _stop_at_step_4), pytest.raises(Stop):
                fitted(dict(output=output, checkpoint_steps=1))
            assert (output / "checkpoints").is_dir()
        model, result = fitted(dict(output=output, checkpoint_steps=1, resume=True))
        log = [{key: value for key, value in row.items() if key != "seconds"} for row in result.log]
        results.append((dict(model.state_dict()), log))
    return results


class Stop(Exception):
    pass


def _stop_at_step_4(progress):
    if (progress.epoch, progress.step) == (1, 1):
        raise Stop
    return {"json": json.dumps(vars(progress))}


def fitted(config):
    torch.manual_seed(0)
    model = mme.create_model("wsl_test_resnet", num_classes=2, img_size=64, norm_layer="groupnorm1", preset="area")
    data, valid = (SyntheticShapes(length=length, size=64, num_classes=2) for length in (19, 5))
    recipe = Recipe(optimizer="sgd", lr=0.02, batch_size=9, erasing_steps=2, ema_decay=0.9, augmentation="crop")
    return model, fit(model, data, recipe, 2, valid=valid, progress=False, cpu=True, **config)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


GRADIENTS = {
    "vit": dict(backbone="test_vit"),
    "vit, area": dict(backbone="test_vit", preset="area"),
    "swin": copy.deepcopy(SWIN),
}
_ERASING = dict(backbone="test_resnet", preset="area", erasing_steps=3)
_GROUP_NORM = dict(backbone_kwargs=dict(norm_layer="groupnorm1"))
GRADIENTS |= {
    # In the process with the first half of the images no history lasts beyond the first pass.
    "erasing": {**_ERASING, **_GROUP_NORM},
    "erasing, whole batch": {**_ERASING, **_GROUP_NORM, "erasing_scope": "batch"},
    "erasing, synchronised BatchNorm": {**_ERASING, "backbone_kwargs": dict(norm_layer=SyncedBatchNorm)},
    "erasing, whole batch, synchronised BatchNorm": {
        **_ERASING,
        "backbone_kwargs": dict(norm_layer=SyncedBatchNorm),
        "erasing_scope": "batch",
    },
    "erasing, frozen BatchNorm": {**_ERASING, "freeze_bn": True, "backbone_kwargs": dict(zero_init_last=False)},
}
FITS = {"plain": {}, "accumulation": dict(accumulation=2)}
for _config in GRADIENTS.values():  # noise of its own in each process
    _config["localizer"] = _config["classifier"] = dict(name="wildcat", dropout=0.0)
GRADIENTS["swin"]["backbone_kwargs"]["drop_path_rate"] = 0.0


def work(rank, folder):
    """All configurations in one process each: starting one takes longer than training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    # What a launcher sets; the processes are connected already.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    try:
        results = {}
        kinds = (
            ("train", train, CONFIGS),
            ("gradient", joined_gradient, GRADIENTS),
            ("fit", train_by_the_engine, FITS),
            ("resume", go_on_after_an_interruption, {"resume": dict(folder=Path(folder))}),
        )
        for kind, function, configs in kinds:
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
    images, target = joined_batch(GRADIENTS[name])
    model(images, target).loss.backward()
    expected = gradients(model)
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert scale > 1e-3
    for rank in ranks:
        assert rank.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(rank[key], expected[key], rtol=1e-3, atol=1e-5 * float(scale), msg=key)


def test_processes_stop_erasing_at_different_passes():
    """By the histories of both halves of the batch; without this the cases above would show nothing."""
    config = GRADIENTS["erasing, whole batch"]
    images, target = joined_batch(config)
    model = build(config)

    def localized(images):
        output = model.localize(images)
        return output.localizer_logits, output.localizer_maps, output.mask

    counts = []
    for share in (slice(0, 2), slice(2, 4)):
        histories = [step.history for step in model.erasing.passes(images[share], target[share], localized)]
        counts.append((len(histories), float(histories[0].sum())))
    assert counts[0] == (1, 0.0) and counts[1][0] > 1 and counts[1][1] == 2.0


@pytest.mark.parametrize("name", FITS)
def test_engine_in_two_processes(name, results):
    """Weights, moving average included, and figures are those of one process with the whole batches."""
    ranks = [result["fit", name] for result in results]
    assert not any(isinstance(rank, str) for rank in ranks), ranks
    model, result = fitted({})
    assert [rank["is_main"] for rank in ranks] == [True, False]
    for rank in ranks:
        for key, value in model.state_dict().items():
            torch.testing.assert_close(rank["weights"][key], value, rtol=1e-3, atol=1e-5, msg=key)
        assert len(rank["log"]) == 2
        for found, expected in zip(rank["log"], result.log, strict=True):
            del found["seconds"]
            assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-3, abs=1e-5)


def test_two_processes_go_on_after_an_interruption(results):
    """With the weights and figures, to the bit, that they would have had."""
    for rank in results:
        assert not isinstance(rank["resume", "resume"], str), rank["resume", "resume"]
        (weights, log), (resumed_weights, resumed_log) = rank["resume", "resume"]
        assert len(log) == 2 and resumed_log == log
        assert all(value.equal(resumed_weights[key]) for key, value in weights.items())
