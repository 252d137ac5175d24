"""`preset="reference"` against numbers recorded from the authors' implementation (`tests/golden/README.md`).

Every test runs over the cases of the set's manifest; `MINMAX_ENTROPY_GOLDEN` points to another set of the same format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import golden_data as golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import minmax_entropy as mme
from minmax_entropy.data.preprocess import Preprocess, padding, scaled_size
from minmax_entropy.engine.recipes import step_decay
from minmax_entropy.erasing import ErasingPass
from minmax_entropy.heads.pooling import ClassMapHead
from minmax_entropy.heads.wildcat import pooled_positions, wildcat_pool
from minmax_entropy.mask import min_max_normalize, resize, soft_mask, split_regions, weighted_map
from minmax_entropy.metrics import dice
from minmax_entropy.reference import reference_key

DTYPES = {"float64": torch.float64, "float32": torch.float32}
INPUTS = ("u8", "labels")

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


# Units: pooling, soft mask, losses, Dice, schedule, sizes. Recorded in float32.


def unit_indices(prefix: str) -> list[tuple[str, int]]:
    """Cases of units, each with the indices of one numbered group of arrays."""
    return [
        (name, i)
        for name in golden.names("units")
        for i in range(len(golden.manifest()["cases"][name].get(prefix, [])))
    ]


def units_with(array: str) -> list[str]:
    return [name for name in golden.names("units") if array in golden.load(name)]


def assert_unit(actual: Tensor, expected: np.ndarray, rtol: float = 2e-6) -> None:
    """Equal within float32 rounding, relative to the largest value; finite where the reference is NaN."""
    actual = actual.numpy()
    assert actual.shape == expected.shape and np.isfinite(actual).all()
    atol = rtol * np.abs(np.nan_to_num(expected)).max()
    np.testing.assert_allclose(np.where(np.isnan(expected), np.nan, actual), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "i"), unit_indices("pool"))
def test_pooling(name, i):
    case = golden.load(name)
    options = case.settings["pool"][i]
    maps = torch.from_numpy(case[f"pool{options['i']}_x"])
    scores = wildcat_pool(maps, options["kmax"], options["kmin"], alpha=0.0)  # the reference drops alpha and kmin
    assert_unit(scores, case[f"pool{options['i']}_scores"])


@pytest.mark.parametrize("name", golden.names("units"))
def test_number_of_pooled_positions(name):
    table = golden.load(name).settings["get_k"]
    counts = [pooled_positions(row["k"], row["n"]) for row in table]
    assert counts == [max(row["result"], 1) for row in table]  # 0 would pool nothing and give NaN


@pytest.mark.parametrize("name", units_with("cwp_in"))
def test_mean_over_modalities(name):
    case = golden.load(name)
    maps, expected = torch.from_numpy(case["cwp_in"]), case["cwp_out"]
    head = ClassMapHead(maps.shape[1], num_classes=expected.shape[1], modalities=maps.shape[1] // expected.shape[1])
    with torch.no_grad():  # as features that the 1x1 convolution passes on
        head.to_modalities.weight.copy_(torch.eye(maps.shape[1])[:, :, None, None])
        head.to_modalities.bias.zero_()
        assert_unit(head.class_maps(maps), expected)


@pytest.mark.parametrize("name", units_with("drop_x"))
def test_dropout_before_pooling(name, monkeypatch):
    """With the recorded draw: the reference drops from all sorted values, of which only the first k are pooled."""
    case = golden.load(name)
    options = case.settings["dropout"]
    kept = torch.from_numpy(case["drop_keep_sorted"])  # [B, K, h*w], of the values from the highest to the lowest

    def recorded_dropout(values: Tensor, p: float, training: bool) -> Tensor:
        rank = values.argsort(dim=-1, descending=True).argsort(dim=-1)  # pooled values come in any order
        return values * kept.gather(-1, rank) / (1 - p) if training else values

    maps = torch.from_numpy(case["drop_x"])
    assert pooled_positions(options["kmax"], maps[0, 0].numel()) == options["k"]
    monkeypatch.setattr(F, "dropout", recorded_dropout)
    pool = dict(kmax=options["kmax"], dropout=options["p"])
    assert_unit(wildcat_pool(maps, training=True, **pool), case["drop_scores"])
    assert_unit(wildcat_pool(maps, training=False, **pool), case["drop_scores_eval"])


@pytest.mark.parametrize(("name", "i"), unit_indices("pbm"))
def test_soft_mask(name, i):
    case = golden.load(name)
    options = case.settings["pbm"][i]
    normalized = min_max_normalize(torch.from_numpy(case[f"pbm{i}_in"]), over="batch")
    assert_unit(soft_mask(normalized, options["sigma"], options["w"]), case[f"pbm{i}_out"])


@pytest.mark.parametrize("name", units_with("ls_out"))
def test_losses(name):
    case = golden.load(name)
    target = torch.from_numpy(case["ls_y"])
    scores = [torch.from_numpy(case[f"ls_{key}"]) for key in ("seg", "pos", "neg")]
    loss, losses = mme.MinMaxEntropyLoss()(target, *scores)
    values = [
        losses["localizer"],
        losses["foreground"],
        losses["background"],
        losses["foreground"] + losses["background"],
    ]
    assert_unit(torch.stack(values), case["ls_out"])
    torch.testing.assert_close(loss, sum(losses.values()))


@pytest.mark.parametrize("name", units_with("dice_out"))
def test_dice(name):
    case = golden.load(name)
    prediction, target = case["dice_p"] >= 0.5, case["dice_t"] >= 0.5
    values = [dice(prediction, target), dice(~prediction, ~target)]
    np.testing.assert_allclose(values, case["dice_out"], rtol=2e-7)


@pytest.mark.parametrize("name", units_with("lr_used_per_epoch"))
def test_learning_rates(name):
    case = golden.load(name)
    options = dict(case.settings["lr"])
    lr = options.pop("lr0")
    rates = [step_decay(epoch, lr, delay=1, **options) for epoch in range(len(case["lr_used_per_epoch"]))]
    np.testing.assert_allclose(rates, case["lr_used_per_epoch"], rtol=1e-12)


@pytest.mark.parametrize("name", golden.names("units"))
def test_sizes(name):
    settings = golden.load(name).settings
    for row in settings["upscale"]:
        assert list(scaled_size(row["h"], row["w"], row["s"], reference=True)) == row["out"][::-1], row
    for row in settings["pad"]:
        assert list(padding(row["s"])) == row["out"], row


# One forward call.


@contextmanager
def recorded(model: mme.WSLModel) -> Iterator[dict[str, list]]:
    """Outputs of the backbone and of the heads, in the order of the calls."""
    calls: dict[str, list] = {"backbone": [], "localizer": [], "classifier": []}
    hooks = [
        getattr(model, name).register_forward_hook(lambda module, args, output, to=to: to.append(output))
        for name, to in calls.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def forward_quantities(model: mme.WSLModel, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    with recorded(model) as calls:
        output = model(images, target)
    features = dict(zip(("feat_seg", "feat_pos", "feat_neg"), calls["backbone"], strict=True))
    (_, maps_pos), (_, maps_neg) = calls["classifier"]
    x_pos, x_neg = split_regions(images, output.mask)
    return features | {
        "scores_seg": output.localizer_logits,
        "scores_pos": output.logits,
        "scores_neg": output.background_logits,
        "maps_seg": output.localizer_maps,
        "maps_pos": maps_pos,
        "maps_neg": maps_neg,
        "mask": output.mask,
        "mask_cont": resize(weighted_map(output.localizer_maps, output.localizer_logits.softmax(1)), images.shape[-2:]),
        "mask_minmax": torch.stack([output.mask.min(), output.mask.max()]),
        "x_pos": x_pos,
        "x_neg": x_neg,
        "loss_cs": output.losses["localizer"],
        "loss_cs_per_sample": F.cross_entropy(output.localizer_logits, target, reduction="none"),
        "loss_pos": output.losses["foreground"],
        "loss_neg": output.losses["background"],
        "loss_total": output.loss,
    }


def own_values(model: mme.WSLModel, keys: list[str]) -> dict[str, Tensor]:
    """Parameters and buffers of the model by the authors' keys."""
    own = model.state_dict()
    return {key: own[reference_key(key)] for key in keys}


def keys_after(case: golden.Case, *prefixes: str) -> list[str]:
    return sorted({name.split(prefix, 1)[1] for name in case for prefix in prefixes if prefix in name})


@each_dtype
@pytest.mark.parametrize("name", golden.names("forward"))
def test_forward(name, dtype):
    case = golden.load(name)
    images = golden.network_input(case["u8"], dtype)
    model = golden.build(case.settings, dtype, images.shape[-2:]).train(case.settings["mode"] == "train")
    with torch.no_grad():
        computed = forward_quantities(model, images, torch.from_numpy(case["labels"]))
    buffers = own_values(model, keys_after(case, "bn_after__"))
    comparison = golden.Comparison(case, dtype)
    comparison.arrays(computed | {f"bn_after__{key}": value for key, value in buffers.items()})
    comparison.finish(INPUTS)


# Training steps, with and without erasing.


@contextmanager
def traced(model: mme.WSLModel) -> Iterator[list[ErasingPass]]:
    """The passes of the erasing loop as they run in the model's forward call."""
    trace: list[ErasingPass] = []
    passes = model.erasing.passes

    def spy(*args) -> Iterator[ErasingPass]:
        for step in passes(*args):
            trace.append(step)
            yield step

    model.erasing.passes = spy
    try:
        yield trace
    finally:
        del model.erasing.passes


def trace_quantities(trace: list[ErasingPass], target: Tensor, sigma: float) -> dict[str, Tensor | int]:
    """Per pass `[U, B, ...]`; `er_data` is the image after the pass's erasure."""
    logits = torch.stack([step.logits for step in trace]).detach()  # [U, B, K]
    probabilities = logits.softmax(dim=-1)
    confidence, predicted = probabilities.max(dim=-1)
    loss = torch.stack([step.loss for step in trace]).detach()
    decay = torch.tensor([math.exp(-t / sigma) for t in range(len(trace))], dtype=logits.dtype)
    return {
        "n_iter": len(trace),
        "er_scores_seg": logits,
        "er_probs_seg": probabilities,
        "er_l_c_s_tmp": loss,
        "er_p_y": confidence,
        "er_pred": predicted,
        "er_check_label": (predicted == target).to(logits.dtype),
        "er_check_loss": (loss <= loss[0]).to(logits.dtype),
        "er_history": torch.stack([step.history for step in trace]),
        "er_trust": torch.stack([step.trust for step in trace]),
        "er_decay": decay,
        "er_mask": torch.stack([step.mask for step in trace]),
        "er_m_pos": torch.stack([step.accumulated for step in trace]),
        "er_data": torch.stack([step.erased for step in trace]),
    }


def step_quantities(
    model: mme.WSLModel, images: Tensor, target: Tensor, gradients: list[str], steps: int
) -> dict[str, Tensor | int]:
    """One forward and backward; `gradients` are keys of the authors' layout, in the order of their norms."""
    with traced(model) as trace:
        output = model(images, target)
    model.zero_grad()
    output.loss.backward()
    terms = dict(output.losses)
    computed = {"scores_seg": output.localizer_logits}
    if trace:
        computed = trace_quantities(trace, target, model.erasing.sigma)
        terms["localizer"] = terms["localizer"] / (steps + 1)  # as it is reported; the gradient is that of the sum
    error = 100 * float((output.logits.argmax(dim=1) != target).float().mean())  # the reference's mean is of float32
    x_pos, x_neg = split_regions(images, output.mask)
    parameters = dict(model.named_parameters())
    grads = {key: parameters[reference_key(key)].grad.clone() for key in gradients}
    norms = torch.stack([grad.norm() for grad in grads.values()])
    computed |= {
        "loss": torch.stack([*terms.values(), sum(terms.values()), torch.tensor(error, dtype=images.dtype)]),
        "scores_pos": output.logits,
        "scores_neg": output.background_logits,
        "m_pos": output.mask,
        "x_pos": x_pos,
        "x_neg": x_neg,
        "grad_norms": norms,
        "grad_global_norm": norms.norm(),
    }
    return computed | {f"grad__{key}": grad for key, grad in grads.items()}


def compare_training(name: str, dtype: torch.dtype, **kwargs) -> None:
    """All optimizer steps of a case's plan, each step's quantities, and the weights at the end."""
    case = golden.load(name)
    settings = case.settings
    comparison = golden.Comparison(case, dtype)
    model = golden.build(settings, dtype, case["s0__u8"].shape[-2:], erasing_sigma=settings["sigma_erase"], **kwargs)
    optimizer = torch.optim.SGD(
        model.parameters(), **{key: settings[key] for key in ("momentum", "nesterov", "dampening", "weight_decay")}
    )
    step = 0
    for epoch, lr in zip(settings["plan"], settings["lr_per_epoch"], strict=True):
        model.erasing.steps = settings["nbr_times_erase"] if epoch["erase"] else 0
        optimizer.param_groups[0]["lr"] = lr
        for _ in range(epoch["n_batches"]):
            images = golden.network_input(case[f"s{step}__u8"], dtype)
            target = torch.from_numpy(case[f"s{step}__labels"])
            computed = step_quantities(
                model.train(), images, target, settings["grad_norms_order"], settings["nbr_times_erase"]
            )
            comparison.arrays({f"s{step}__{key}": value for key, value in computed.items()})
            optimizer.step()
            step += 1
    final = own_values(model, keys_after(case, "final_sub__", "final_stats__", "final_full__", "final_cnt__"))
    comparison.arrays({f"final__{key}": value for key, value in final.items()})
    comparison.finish(INPUTS)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.slow if dtype == torch.float32 else (), id=name)
        for name, dtype in DTYPES.items()
    ],
)
@pytest.mark.parametrize("name", golden.names("train"))
def test_training(name, dtype):
    """float32 takes as long again, and is looked at pass by pass in `test_forward`."""
    compare_training(name, dtype)


def most_varied_plan() -> list[str]:
    """The training case with the most kinds of epochs."""
    cases = golden.manifest()["cases"]
    kinds = {name: len({epoch["erase"] for epoch in cases[name]["plan"]}) for name in golden.names("train")}
    return sorted(kinds, key=kinds.get)[-1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", most_varied_plan())
def test_training_with_checkpointed_passes(name):
    compare_training(name, torch.float64, checkpoint_passes=True)


# Evaluation: images of any size, one at a time.


def preprocess(settings: dict) -> Preprocess:
    normalization = mme.PRESETS["reference"]["data_config"]
    return Preprocess(**normalization, short_side=settings["up_scale_small_dim_to"], reference=True)


@pytest.mark.parametrize("name", golden.names("eval"))
def test_network_input(name):
    case = golden.load(name)
    for i in range(case.settings["n"]):
        image = Image.fromarray(np.ascontiguousarray(case[f"img{i}"].transpose(1, 2, 0)))
        expected = case[f"net_u8_{i}"]
        np.testing.assert_array_equal(preprocess(case.settings).pixels(image).transpose(2, 0, 1), expected)
        values = preprocess(case.settings)(image)
        torch.testing.assert_close(values, golden.network_input(expected, torch.float32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", golden.names("eval"))
def test_evaluation(name):
    case = golden.load(name)
    settings, labels = case.settings, torch.from_numpy(case["labels"])
    model = golden.build(settings, torch.float64, case["net_u8_0"].shape[-2:]).eval()
    rows, computed = [], {}
    for i, target in enumerate(labels.split(1)):
        truth = case[f"true{i}"] >= 0.5
        with torch.no_grad():
            output = model(golden.network_input(case[f"net_u8_{i}"][None], torch.float64), target)
        mask = preprocess(settings).restore(output.mask[0], truth.shape)[0]
        found = mask.numpy() >= 0.5
        probabilities = output.logits.softmax(dim=1)[0]
        rows.append(
            {
                "predictions": probabilities.argmax(),
                "probs": probabilities.max(),
                "probs_pos": probabilities,
                "probs_neg": output.background_logits.softmax(dim=1)[0],
                "loss_total": output.loss,
                "loss_cs": output.losses["localizer"],
                "loss_pos": output.losses["foreground"],
                "loss_neg": output.losses["background"],
                "f1pos": torch.tensor(dice(found, truth)),
                "f1neg": torch.tensor(dice(~found, ~truth)),
            }
        )
        computed[f"pred_mask{i}"] = mask
    computed |= {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    computed["error_pct"] = 100 * (computed["predictions"] != labels).double().mean()
    comparison = golden.Comparison(case, torch.float64)
    comparison.arrays(computed)
    comparison.finish(("labels", *(f"{key}{i}" for key in ("img", "true", "net_u8_") for i in range(settings["n"]))))


# Loading a checkpoint in the authors' layout.

SMALL = dict(block="basic", layers=[1, 1, 1, 1], C=2, M=5, kmax=0.3, scale=[0.5, 0.5], sigma=0.4, w=6, weight_seed=1)


@pytest.fixture(scope="module")
def small_state() -> dict[str, Tensor]:
    return golden.reference_state(SMALL)


@pytest.fixture
def small_model() -> mme.WSLModel:
    return golden.create(SMALL)


def snapshot(model: mme.WSLModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model: mme.WSLModel, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def test_every_key_has_its_place(small_model, small_state):
    ours = [reference_key(key) for key in small_state if key not in ("sigma", "w")]
    assert sorted(ours) == sorted(small_model.state_dict())
    assert mme.load_reference_checkpoint(small_model, small_state) is small_model
    assert_same(small_model, own_state(small_state))


def own_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {reference_key(key): value for key, value in state.items() if key not in ("sigma", "w")}


@pytest.mark.parametrize("convert", [str, lambda path: path], ids=["str", "Path"])
def test_checkpoint_from_a_file(small_model, small_state, tmp_path, convert):
    path = tmp_path / "reference.pt"
    torch.save(small_state, path)
    assert_same(mme.load_reference_checkpoint(small_model, convert(path)), own_state(small_state))


def test_checkpoint_of_a_parallel_model(small_model, small_state):
    state = {f"module.{key}": value for key, value in small_state.items()}
    assert_same(mme.load_reference_checkpoint(small_model, state), own_state(small_state))


def test_checkpoint_without_batch_counters(small_model, small_state):
    state = {key: value for key, value in small_state.items() if not key.endswith("num_batches_tracked")}
    assert_same(mme.load_reference_checkpoint(small_model, state), own_state(small_state))


@pytest.mark.parametrize("prefix", ["", "mask.", "module."])
def test_scalars_set_the_mask(small_model, small_state, prefix):
    state = {key: value for key, value in small_state.items() if key not in ("sigma", "w")}
    state |= {f"{prefix}sigma": torch.tensor([0.4]), f"{prefix}w": torch.tensor([6.0])}
    mme.load_reference_checkpoint(small_model, state)
    assert small_model.mask_sigma == float(np.float32(0.4)) and small_model.mask_omega == 6.0


def test_mask_stays_without_scalars(small_model, small_state):
    mme.load_reference_checkpoint(small_model, {k: v for k, v in small_state.items() if k not in ("sigma", "w")})
    assert small_model.mask_sigma == 0.5 and small_model.mask_omega == 8.0


def damaged(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    state = dict(state)
    if kind == "missing":
        del state["layer2.0.bn1.running_mean"]
    elif kind == "left over":
        state["layer1.7.conv1.weight"] = torch.zeros(1)
    elif kind == "unknown":
        state["decoder.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["cl32.to_modalities.weight"] = torch.zeros(15, 512, 1, 1)
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing backbone\.net\.layer2\.0\.bn1\.running_mean"),
        ("left over", r"left over backbone\.net\.layer1\.7\.conv1\.weight"),
        ("unknown", r"left over decoder\.weight"),
        ("shape", r"classifier\.to_modalities\.weight is \(15, 512, 1, 1\), the model has \(10, 512, 1, 1\)"),
    ],
)
def test_checkpoint_that_does_not_fit(small_model, small_state, kind, message):
    before = snapshot(small_model)
    with pytest.raises(ValueError, match=message):
        mme.load_reference_checkpoint(small_model, damaged(small_state, kind))
    assert_same(small_model, before)
    assert small_model.mask_sigma == 0.5 and small_model.mask_omega == 8.0


def test_checkpoint_needs_a_deep_stem(small_state):
    with pytest.raises(ValueError, match="deep-stem ResNet"):
        mme.load_reference_checkpoint(mme.create_model("wsl_resnet18", num_classes=2), small_state)


def test_checkpoint_that_is_not_there(small_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights"):
        mme.load_reference_checkpoint(small_model, tmp_path / "nothing.pt")
