"""Tests of the objects of a run."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from finetune.builders import build_training
from finetune.builders.optimization.optimizer_factory import (
    build_optimizer_factory,
    uses_fused_optimizer,
)
from finetune.bundle.model_card import ModelCard
from finetune.config.load import build_config, dump_config
from finetune.config.resolved import ResolvedConfig
from finetune.errors import ConfigError, DataError, FinetuneError
from tests.support.networks import randomise
from tests.support.runs import (
    build_listed_manifest,
    build_photo_manifest,
    create_small_config,
    create_small_training,
    write_weights,
)

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "0",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "7",
}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"imbalance.sampler": "weighted", "imbalance.class_weights": "balanced"},
            r"imbalance\.sampler=weighted .*imbalance\.class_weights=balanced ",
        ),
        (
            {"imbalance.strategy": "class_weights", "imbalance.sampler": "sqrt"},
            r"imbalance\.sampler=sqrt .*class_weights=balanced .*imbalance\.strategy=class_weights",
        ),
        ({"model.batch_norm": "sync"}, r"model\.batch_norm=sync .* trainer\.accelerator=cpu"),
        (
            {"trainer.precision": "16-mixed"},
            r"trainer\.precision=16-mixed .* trainer\.accelerator=cpu.*bf16-mixed",
        ),
        (
            {"trainer.batch_size": 9, "trainer.devices": 2},
            r"trainer\.batch_size=9 .*trainer\.devices=2 .*multiple of 2",
        ),
        (
            {"trainer.batch_size": 8, "trainer.accumulate_grad_batches": 3},
            r"trainer\.batch_size=8 .*trainer\.accumulate_grad_batches=3",
        ),
        (
            {"unfreeze.name": "gradual", "unfreeze.params": {"stpe": 1}},
            r"unfreeze\.params: .*'stpe'.*'step'",
        ),
        (
            {"unfreeze.name": "all", "unfreeze.params": {"epochs": 1}},
            r"unfreeze\.params: .*'epochs'",
        ),
        (
            {"unfreeze.name": "milestones"},
            r"unfreeze\.params: .*'depths'",
        ),
        (
            {"unfreeze.name": "gradual", "unfreeze.params": {"every": "often"}},
            r"^unfreeze\.params: found every=often, expected a number",
        ),
        (
            {"unfreeze.name": "head_first", "unfreeze.params": {"depth": 1.5}},
            r"^unfreeze\.params: .*1\.5",
        ),
        ({"unfreeze.name": "no_such_pkg:f"}, r"unfreeze\.name.*'no_such_pkg'"),
        (
            {"lr_schedule.name": "math:nothing"},
            r"lr_schedule\.name: .*'math'.*'nothing'",
        ),
        ({"loss.name": "math:pi"}, r"loss\.name=math:pi: "),
        *(
            (
                {"loss.name": "logit_adjusted", "loss.params": {"tau": tau}},
                rf"^loss\.(params: found tau={tau}|name=logit_adjusted with .*{tau}.* fails: )",
            )
            for tau in ("much", float("nan"))
        ),
        ({"imbalance.sampler": "mine_not_there:f"}, r"imbalance\.sampler.*'mine_not_there'"),
    ],
)
def test_build_training_invalid_settings_raise_config_error_naming_them(
    settings: dict[str, Any], message: str, animals: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_small_training(animals, **settings)


@pytest.mark.parametrize("backbone", ["googlenet", "alexnet", "dla46_c"])
def test_grad_checkpointing_unsupported_network_raises_config_error(
    backbone: str, animals: Path
) -> None:
    settings: dict[str, Any] = {"model__backbone": backbone, "data__image_size": 64}
    with pytest.raises(
        ConfigError,
        match=rf"^model\.grad_checkpointing=true: '{backbone}' .*trainer\.accumulate_grad_batches",
    ):
        create_small_training(
            animals, **settings, model__batch_norm="frozen", model__grad_checkpointing=True
        )


def test_grad_checkpointing_with_live_batch_norm_raises_config_error(animals: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"model\.grad_checkpointing=true .*model\.batch_norm=train.*=frozen",
    ):
        create_small_training(animals, model__batch_norm="train", model__grad_checkpointing=True)
    # without BatchNorm layers the mode has no effect
    create_small_training(
        animals,
        model__backbone="test_vit",
        data__image_size=64,
        model__batch_norm="train",
        model__grad_checkpointing=True,
    )


@pytest.mark.parametrize("depth", [2, None], ids=["two groups", "all"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_grad_checkpointing_gradients_are_unchanged(
    backbone: str, depth: int | None, animals: Path
) -> None:
    settings: dict[str, Any] = {
        "model__backbone": backbone,
        "model__batch_norm": "frozen",
        "model__kwargs": {"drop_path_rate": 0.5},
        "data__image_size": 64,
    }
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gradients = []
    calls: list[bool] = []
    for checkpointed in (False, True):
        training = create_small_training(
            animals, **settings, model__grad_checkpointing=checkpointed
        )
        classifier = training.module.classifier
        randomise(classifier.network)
        classifier.set_depth(len(classifier.groups) if depth is None else depth)
        classifier.train()
        for module in classifier.network.modules():
            module.register_forward_hook(lambda *_, flag=checkpointed: calls.append(flag))
        with torch.random.fork_rng():
            torch.manual_seed(3)  # stochastic depth must drop the same branches when recomputing
            classifier(images).square().sum().backward()
        gradients.append({n: p.grad for n, p in classifier.named_parameters()})
    plain, checkpointed_gradients = gradients
    assert calls.count(True) > calls.count(False), "layers are computed again"
    assert [name for name, gradient in plain.items() if gradient is None] == [
        name for name, gradient in checkpointed_gradients.items() if gradient is None
    ]
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(checkpointed_gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_accelerator_missing_raises_config_error(animals: Path) -> None:
    missing = next(
        name
        for name, is_available in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
        )
        if not is_available
    )
    with pytest.raises(ConfigError, match=rf"trainer\.accelerator={missing}"):
        create_small_training(animals, trainer__accelerator=missing)


def test_more_micro_batches_than_images_raise_data_error(animals: Path) -> None:
    with pytest.raises(DataError, match=r"trainer\.devices=32 .*24 .*32"):
        create_small_training(animals, trainer__batch_size=32, trainer__devices=32)


@pytest.mark.parametrize(
    ("batch_size", "settings", "expected"),
    [
        (8, {}, 8),
        (64, {}, 24),
        (32, {"trainer__devices": 2, "trainer__accumulate_grad_batches": 4}, 24),
    ],
)
def test_batch_size_is_reduced_to_the_images(
    batch_size: int, settings: dict[str, Any], expected: int, animals: Path
) -> None:
    training = create_small_training(animals, trainer__batch_size=batch_size, **settings)
    assert training.batch_size == training.datamodule.loader_options.batch_size == expected
    assert training.steps_per_epoch == 24 // expected


def test_build_training_resolves_every_auto(animals: Path) -> None:
    config = build_config(
        {}, assignments={"model.backbone": "test_resnet", "model.weights": "random"}
    )
    training = build_training(config, build_photo_manifest(animals))
    lines = [line.strip() for line in dump_config(training.config).splitlines()]
    # they apply before the manifest is built
    assert [line for line in lines if line.endswith(": auto")] == [
        "image_column: auto", "label_column: auto", "group_column: auto", "task: auto",
        "splits: auto", "min_images_per_class: auto", "pixel_range: auto",
    ]  # fmt: skip
    assert type(training.config) is ResolvedConfig
    resolved = training.config
    assert resolved.unfreeze.name == "all"
    assert resolved.model.batch_norm == "train"
    assert resolved.optim.lr == 1e-3
    assert resolved.trainer.monitor == "accuracy"
    assert (resolved.imbalance.sampler, resolved.imbalance.class_weights) == ("uniform", "none")


def test_build_training_from_resolved_config_is_identical(animals: Path) -> None:
    first = create_small_training(animals, unfreeze__name="gradual", imbalance__strategy="sqrt")
    again = build_training(first.config, build_photo_manifest(animals))
    assert again.config == first.config
    assert (again.phases, again.peak_learning_rates) == (first.phases, first.peak_learning_rates)


@pytest.mark.parametrize(("counts", "monitor"), [((8, 8, 4), "accuracy"), ((9, 8, 4), "macro_f1")])
def test_monitor_follows_class_imbalance(counts: tuple[int, ...], monitor: str) -> None:
    manifest = build_listed_manifest(dict(zip("abc", counts, strict=True)))
    assert build_training(create_small_config(), manifest).config.trainer.monitor == monitor


@pytest.mark.parametrize(
    ("name", "kind", "lr"), [("adamw", torch.optim.AdamW, 1e-3), ("sgd", torch.optim.SGD, 1e-2)]
)
def test_optimizer_has_every_parameter_with_its_learning_rate(
    name: str, kind: type[torch.optim.Optimizer], lr: float, animals: Path
) -> None:
    training = create_small_training(
        animals, optim__name=name, optim__backbone_lr_scale=0.1, optim__layer_decay=0.5
    )
    classifier = training.module.classifier
    optimizer = training.module.recipe.make_optimizer(classifier)
    assert type(optimizer) is kind
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(classifier.network.named_parameters())
    assert len(rate_of) == len(parameters)
    for distance, group in enumerate(classifier.groups):
        expected = lr if distance == 0 else lr * 0.1 * 0.5 ** (distance - 1)
        for parameter in group.parameter_names:
            assert rate_of[id(parameters[parameter])] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)]
)
def test_optimizer_is_fused_except_for_fp16(precision: str, fused: bool, animals: Path) -> None:
    training = create_small_training(animals)
    # CPUs do not support fp16, so only the optimizer is built with it
    make_optimizer = build_optimizer_factory(
        training.config.optim,
        peak_learning_rates=list(training.peak_learning_rates),
        is_fused=uses_fused_optimizer(precision),
    )
    optimizer = make_optimizer(training.module.classifier)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    # Lightning refuses to clip gradients if this attribute is true
    assert getattr(optimizer, "_step_supports_amp_scaling", False) == fused


def test_warmup_is_repeated_at_each_unfreezing(animals: Path) -> None:
    training = create_small_training(
        animals,
        trainer__epochs=5,
        unfreeze__name="milestones",
        unfreeze__params={"depths": {0: 1, 2: 3, 3: 1.0}},
        lr_schedule__name="constant",
        lr_schedule__warmup_fraction=0.2,
    )
    assert [(p.first_epoch, p.last_epoch, p.depth) for p in training.phases] == [
        (0, 1, 1),
        (2, 2, 3),
        (3, 4, 6),
    ]
    # 5 epochs of 3 steps; a warm-up has 3 steps, but at most 0.3 of its phase, rounded up
    factors = [training.module.recipe.lr_lambda(step) for step in range(15)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 1, 1, 1, 1, 1])


def test_class_weights_equal_scikit_learn() -> None:
    counts = {"a": 12, "b": 6, "c": 3}
    manifest = build_listed_manifest(counts)
    training = build_training(
        create_small_config(imbalance__strategy="class_weights", loss__label_smoothing=0.0),
        manifest,
    )
    labels = np.repeat([0, 1, 2], list(counts.values()))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert expected[labels].mean() == pytest.approx(1)
    logits = torch.zeros(3, 3)
    for number, weight in enumerate(expected):
        loss = training.module.recipe.criterion_schedule(0)(logits, torch.full((3,), number))
        assert float(loss) == pytest.approx(weight * np.log(3), rel=1e-6)
    assert training.datamodule.sampling_schedule(0) is None


@pytest.mark.parametrize(("strategy", "power"), [("weighted", 1.0), ("sqrt", 0.5)])
def test_weighted_sampler_draws_by_class_size_and_loss_is_unweighted(
    strategy: str, power: float
) -> None:
    training = build_training(
        create_small_config(imbalance__strategy=strategy),
        build_listed_manifest({"a": 12, "b": 6, "c": 3}),
    )
    weights = training.datamodule.sampling_schedule(0)
    assert isinstance(weights, np.ndarray)
    sizes = np.repeat([12, 6, 3], [12, 6, 3])
    np.testing.assert_allclose(weights * sizes**power / weights[0], 12**power)
    criterion = training.module.recipe.criterion_schedule(0)
    losses = [float(criterion(torch.zeros(1, 3), torch.tensor([k]))) for k in range(3)]
    assert losses == pytest.approx([np.log(3)] * 3)


def test_custom_unfreeze_schedule_receives_its_parameters(animals: Path, code: Path) -> None:
    code.write_text("def odd(epoch, num_groups, *, deep=2):\n    return deep if epoch % 2 else 1\n")
    training = create_small_training(
        animals, trainer__epochs=4, unfreeze__name="mine:odd", unfreeze__params={"deep": 3}
    )
    assert [phase.depth for phase in training.phases] == [1, 3, 1, 3]
    with pytest.raises(ConfigError, match=r"unknown parameter 'depth'\. Did you mean 'deep'\?"):
        create_small_training(animals, unfreeze__name="mine:odd", unfreeze__params={"depth": 3})


@pytest.mark.parametrize("value", ["0", "7", "True", "None", "'all'"])
def test_custom_unfreeze_schedule_invalid_depth_raises_config_error(
    value: str, animals: Path, code: Path
) -> None:
    code.write_text(f"def wrong(epoch, num_groups):\n    return {value} if epoch else 1\n")
    shown = value.replace("'", ".")
    with pytest.raises(
        ConfigError,
        match=rf"unfreeze\.name=mine:wrong .*depth {shown} for epoch 1 .* 1 to 6",
    ):
        create_small_training(animals, unfreeze__name="mine:wrong")


def test_custom_unfreeze_schedule_accepts_fractions(animals: Path, code: Path) -> None:
    code.write_text("def fraction(epoch, num_groups):\n    return [0.5, 1.0, 1.5][epoch]\n")
    training = create_small_training(animals, unfreeze__name="mine:fraction")
    assert [phase.depth for phase in training.phases] == [3, 6]
    with pytest.raises(ConfigError, match=r"1\.5"):
        create_small_training(animals, unfreeze__name="mine:fraction", trainer__epochs=3)


def test_custom_unfreeze_schedule_error_raises_config_error_naming_it(
    animals: Path, code: Path
) -> None:
    code.write_text("def fails(epoch, num_groups):\n    return 2 // (2 - epoch)\n")
    with pytest.raises(ConfigError, match=r"mine:fails .*epoch 2 .*ZeroDivisionError"):
        create_small_training(animals, unfreeze__name="mine:fails", trainer__epochs=3)


def test_custom_lr_schedule_receives_the_parameters_that_it_takes(
    animals: Path, code: Path
) -> None:
    code.write_text(
        "def square(progress, *, final_factor):\n    return max(final_factor, 1 - progress**2)\n"
        "def bare(progress):\n    return 1.0\n"
    )
    training = create_small_training(
        animals, lr_schedule__name="mine:square", lr_schedule__warmup_fraction=0.0
    )
    factors = [training.module.recipe.lr_lambda(step) for step in range(6)]
    assert factors == pytest.approx([1 - (step / 6) ** 2 for step in range(6)])
    # final_factor is passed only to functions that take it, and is an error if set for others
    assert (
        create_small_training(animals, lr_schedule__name="mine:bare").module.recipe.lr_lambda(5)
        == 1
    )
    with pytest.raises(ConfigError, match=r"lr_schedule\.name=mine:bare: .*'final_factor'"):
        create_small_training(animals, lr_schedule__name="mine:bare", lr_schedule__final_factor=0.5)


def test_build_training_with_checkpoint_card_uses_its_preprocessing(animals: Path) -> None:
    first = create_small_training(animals)
    card = ModelCard.from_json(first.module.card)
    changed = replace(card, spec=replace(card.spec, mean=(0.1, 0.2, 0.3)))
    config = create_small_config(model__weights="/gone/since/weights.pth")
    resumed = build_training(config, build_photo_manifest(animals), checkpoint_card=changed)
    assert resumed.module.spec.mean == (0.1, 0.2, 0.3)
    assert resumed.network.report.source == "random"
    # other settings follow the weights that the run started from
    assert resumed.config.model.batch_norm == "frozen"
    with pytest.raises(FinetuneError, match="/gone/since/weights"):
        build_training(config, build_photo_manifest(animals))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 1),
        (TORCHRUN, 2),
        (SRUN, 4),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, 1),  # an allocation without srun
    ],
    ids=["alone", "torchrun", "srun", "allocation"],
)
def test_devices_follow_the_launcher(
    variables: dict[str, str], expected: int, animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*TORCHRUN, *SRUN, "SLURM_NTASKS", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    training = create_small_training(animals, trainer__devices="auto", trainer__batch_size=16)
    assert training.config.trainer.devices == expected


@pytest.mark.parametrize(
    ("variables", "num_workers"),
    [({"SLURM_CPUS_PER_TASK": "8"}, 2), ({}, 0)],
    ids=["bound", "shared"],
)
def test_num_workers_uses_the_cores_of_each_slurm_task(
    variables: dict[str, str], num_workers: int, animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SRUN, **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("finetune.builders.resolve.count_available_cores", lambda: 8)
    training = create_small_training(
        animals, trainer__devices="auto", trainer__batch_size=16, data__num_workers="auto"
    )
    assert training.config.data.num_workers == num_workers


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"model__batch_norm": "train"},
            r"^model\.batch_norm=train .*trainer\.batch_size=8: .*8 micro-batches.*"
            r"model\.batch_norm=frozen\.$",
        ),
        (
            {"augment__mixup": 0.2, "model__batch_norm": "frozen"},
            r"^augment\.mixup=0\.2 .*trainer\.batch_size=8: .*8 micro-batches",
        ),
    ],
)
def test_single_image_micro_batch_raises_config_error(
    setting: dict[str, object], message: str, animals: Path
) -> None:
    split = {"trainer__devices": 2, "trainer__accumulate_grad_batches": 4}
    with pytest.raises(ConfigError, match=message):
        create_small_training(animals, **split, **setting)
    create_small_training(animals, **{**split, "trainer__accumulate_grad_batches": 2}, **setting)


def test_single_image_micro_batch_with_frozen_batch_norm_is_accepted(animals: Path) -> None:
    split = {"trainer__devices": 2, "trainer__accumulate_grad_batches": 4}
    create_small_training(animals, **split, model__batch_norm="frozen")
    # only the head trains, and BatchNorm below it is frozen
    create_small_training(
        animals, **split, model__batch_norm="train", unfreeze__name="linear_probe"
    )


def test_network_weights_depend_only_on_the_seed(animals: Path) -> None:
    def build_state(**settings: object) -> dict[str, torch.Tensor]:
        return create_small_training(animals, **settings).module.state_dict()

    with torch.random.fork_rng():
        first = build_state(seed=1)
        torch.manual_seed(123)
        again, other = build_state(seed=1), build_state(seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["classifier.network.conv1.0.weight"], other["classifier.network.conv1.0.weight"]
    )
    assert os.environ.get("PL_GLOBAL_SEED") is None


@pytest.mark.parametrize(
    ("settings", "flipped", "flipped_by"),
    [
        ({"augment__name": "light"}, True, "augment.name=light"),
        ({"augment__name": "none"}, False, "augment.name=none"),
        ({"augment__name": "none", "probe__hflip": "on"}, True, "probe.hflip=on"),
        ({"augment__name": "light", "probe__hflip": "off"}, True, "augment.name=light"),
        (
            {"augment__name": "none", "probe__hflip": "on", "probe__enabled": "off"},
            False,
            "augment.name=none",
        ),
        (
            {
                "augment__name": "light",
                "probe__hflip": "off",
                "unfreeze__name": "linear_probe",
                "trainer__epochs": "auto",
            },
            False,
            "probe.hflip=off",
        ),
    ],
)
def test_card_facts_state_flips_and_their_setting(
    settings: dict[str, str], flipped: bool, flipped_by: str, animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    training = create_small_training(animals, model__weights=str(weights), **settings)
    facts = training.module.card["facts"]
    assert (facts["flipped"], facts["flipped_by"]) == (flipped, flipped_by)
