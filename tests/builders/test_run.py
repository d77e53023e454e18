"""The config becomes objects; what cannot apply is refused and named."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from finetune.builders import build_training
from finetune.builders.schedules import build_recipe
from finetune.bundle.model_card import ModelCard
from finetune.config.load import build_config, dump_config, replace_values
from finetune.errors import ConfigError, DataError, FinetuneError
from tests.support.networks import one_thread, randomise
from tests.support.runs import (
    listed,
    manifest_of,
    small_config,
    small_training,
    write_photos,
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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "animals")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"imbalance.sampler": "weighted", "imbalance.class_weights": "balanced"},
            r"imbalance\.sampler=weighted .*imbalance\.class_weights=balanced .*Keep one",
        ),
        (
            {"imbalance.strategy": "class_weights", "imbalance.sampler": "sqrt"},
            r"imbalance\.sampler=sqrt .*class_weights=balanced .*imbalance\.strategy=class_weights",
        ),
        ({"model.batch_norm": "sync"}, r"model\.batch_norm=sync .* trainer\.accelerator=cpu"),
        (
            {"trainer.precision": "16-mixed"},
            r"precision=16-mixed .* trainer\.accelerator=cpu.*bf16-mixed",
        ),
        (
            {"trainer.batch_size": 9, "trainer.devices": 2},
            r"batch_size=9 does not divide by 2 processes.*Take a multiple of 2",
        ),
        (
            {"trainer.batch_size": 8, "trainer.accumulate_grad_batches": 3},
            r"batch_size=8 does not divide by 1 processes times trainer\.accumulate_grad_batches=3",
        ),
        (
            {"unfreeze.name": "gradual", "unfreeze.params": {"stpe": 1}},
            r"unfreeze\.params: unknown parameter 'stpe'\. Did you mean 'step'\?",
        ),
        (
            {"unfreeze.name": "all", "unfreeze.params": {"epochs": 1}},
            r"unknown parameter 'epochs'\. It takes none",
        ),
        (
            {"unfreeze.name": "milestones"},
            r"unfreeze\.params: parameter 'depths' is required",
        ),
        (
            {"unfreeze.name": "gradual", "unfreeze.params": {"every": "often"}},
            r"unfreeze\.name=gradual.*'every': 'often'.*epoch 0: TypeError",
        ),
        (
            {"unfreeze.name": "head_first", "unfreeze.params": {"depth": 1.5}},
            r"^unfreeze\.params: depth 1\.5 is over",
        ),
        ({"unfreeze.name": "no_such_pkg:f"}, r"unfreeze\.name: cannot import 'no_such_pkg'"),
        (
            {"lr_schedule.name": "math:nothing"},
            r"lr_schedule\.name: module 'math' has no 'nothing'",
        ),
        ({"loss.name": "math:pi"}, r"loss\.name=math:pi: .* is no function"),
        ({"imbalance.sampler": "mine_not_there:f"}, r"imbalance\.sampler: cannot import"),
    ],
)
def test_what_cannot_be_is_refused_with_both_settings(
    settings: dict[str, Any], message: str, animals: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_training(animals, **settings)


@pytest.mark.parametrize("backbone", ["googlenet", "alexnet", "dla46_c"])
def test_checkpointing_is_refused_where_the_network_has_none(backbone: str, animals: Path) -> None:
    settings: dict[str, Any] = {"model__backbone": backbone, "data__image_size": 64}
    with pytest.raises(
        ConfigError,
        match=rf"^model\.grad_checkpointing: '{backbone}' does not support it\. Use trainer\.acc",
    ):
        small_training(
            animals, **settings, model__batch_norm="frozen", model__grad_checkpointing=True
        )


def test_checkpointing_would_count_a_batch_twice_in_live_statistics(animals: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"grad_checkpointing cannot apply with model\.batch_norm=train.*Use .*=frozen",
    ):
        small_training(animals, model__batch_norm="train", model__grad_checkpointing=True)
    # a network without BatchNorm has no statistics, whatever the mode
    small_training(
        animals,
        model__backbone="test_vit",
        data__image_size=64,
        model__batch_norm="train",
        model__grad_checkpointing=True,
    )


@pytest.mark.parametrize("depth", [2, None], ids=["two groups", "all"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_checkpointing_changes_no_gradient(backbone: str, depth: int | None, animals: Path) -> None:
    settings: dict[str, Any] = {
        "model__backbone": backbone,
        "model__batch_norm": "frozen",
        "model__kwargs": {"drop_path_rate": 0.5},
        "data__image_size": 64,
    }
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gradients = []
    computed: list[bool] = []
    for checkpointed in (False, True):
        training = small_training(animals, **settings, model__grad_checkpointing=checkpointed)
        classifier = training.module.classifier
        randomise(classifier.network)
        classifier.set_depth(len(classifier.groups) if depth is None else depth)
        classifier.train()
        for module in classifier.network.modules():
            module.register_forward_hook(lambda *_, again=checkpointed: computed.append(again))
        with torch.random.fork_rng():
            torch.manual_seed(
                3
            )  # of the branches that drop out, which must be drawn alike the second time
            classifier(images).square().sum().backward()
        gradients.append({n: p.grad for n, p in classifier.named_parameters()})
    plain, again = gradients
    assert computed.count(True) > computed.count(False), "layers are computed again"
    assert [n for n in plain if plain[n] is None] == [n for n in again if again[n] is None]
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_device_that_is_not_there_is_refused(animals: Path) -> None:
    missing = next(
        name
        for name, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
        )
        if not there
    )
    with pytest.raises(ConfigError, match=f"trainer.accelerator={missing}: .*no such device"):
        small_training(animals, trainer__accelerator=missing)


def test_more_shares_than_images_are_refused(animals: Path) -> None:
    with pytest.raises(
        DataError, match=r"24 training images an epoch cannot be shared by 32 batches"
    ):
        small_training(animals, trainer__batch_size=32, trainer__devices=32)


@pytest.mark.parametrize(
    ("asked", "shards", "expected"),
    [
        (8, {}, 8),
        (64, {}, 24),
        (32, {"trainer__devices": 2, "trainer__accumulate_grad_batches": 4}, 24),
    ],
)
def test_the_batch_shrinks_to_the_images(
    asked: int, shards: dict[str, Any], expected: int, animals: Path
) -> None:
    training = small_training(animals, trainer__batch_size=asked, **shards)
    assert training.batch_size == training.datamodule.loader_options.batch_size == expected
    assert training.steps_per_epoch == 24 // expected


def test_nothing_is_left_to_decide(animals: Path) -> None:
    config = build_config(
        {}, assignments={"model.backbone": "test_resnet", "model.weights": "random"}
    )
    training = build_training(config, manifest_of(animals))
    decided = dump_config(training.config)
    left = [line.strip() for line in decided.splitlines() if line.rstrip().endswith(": auto")]
    # how small a class may be was settled when the data were read
    assert left == ["min_images_per_class: auto"]
    resolved = training.config
    assert resolved.unfreeze.name == "all"
    assert resolved.model.batch_norm == "train"
    assert resolved.optim.lr == 1e-3
    assert resolved.trainer.monitor == "accuracy"
    assert (resolved.imbalance.sampler, resolved.imbalance.class_weights) == ("uniform", "none")


def test_what_was_decided_builds_the_same_again(animals: Path) -> None:
    first = small_training(animals, unfreeze__name="gradual", imbalance__strategy="sqrt")
    again = build_training(first.config, manifest_of(animals))
    assert again.config == first.config
    assert (again.phases, again.peak_learning_rates) == (first.phases, first.peak_learning_rates)


@pytest.mark.parametrize(("counts", "monitor"), [((8, 8, 4), "accuracy"), ((9, 8, 4), "macro_f1")])
def test_the_best_epoch_is_chosen_by_what_suits_the_classes(
    counts: tuple[int, ...], monitor: str
) -> None:
    manifest = listed(dict(zip("abc", counts, strict=True)))
    assert build_training(small_config(), manifest).config.trainer.monitor == monitor


@pytest.mark.parametrize(
    ("name", "kind", "lr"), [("adamw", torch.optim.AdamW, 1e-3), ("sgd", torch.optim.SGD, 1e-2)]
)
def test_the_optimizer_has_every_parameter_at_its_rate(
    name: str, kind: type[torch.optim.Optimizer], lr: float, animals: Path
) -> None:
    training = small_training(
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
def test_an_optimizer_that_unscales_gradients_itself_is_none_for_fp16(
    precision: str, fused: bool, animals: Path
) -> None:
    training = small_training(animals)
    groups = training.module.classifier.groups
    recipe, _ = build_recipe(
        replace_values(training.config, {"trainer.precision": precision}),
        training.manifest,
        sampling=training.datamodule.sampling_schedule,
        num_groups=len(groups),
        peak_learning_rates=list(training.peak_learning_rates),
        steps_per_epoch=3,
    )
    optimizer = recipe.make_optimizer(training.module.classifier)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    # what Lightning looks at before it refuses to clip
    assert getattr(optimizer, "_step_supports_amp_scaling", False) == fused


def test_the_rise_begins_again_where_layers_thaw(animals: Path) -> None:
    training = small_training(
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
    # 5 epochs of 3 steps, of which a rise takes 3
    factors = [training.module.recipe.lr_lambda(step) for step in range(15)]
    rise = [1 / 3, 2 / 3, 1.0]
    assert factors == pytest.approx([*rise, 1, 1, 1, *rise, *rise, 1, 1, 1])


def test_class_weights_are_scikit_learns_with_mean_one_over_the_images() -> None:
    counts = {"a": 12, "b": 6, "c": 3}
    manifest = listed(counts)
    training = build_training(
        small_config(imbalance__strategy="class_weights", loss__label_smoothing=0.0), manifest
    )
    labels = np.repeat([0, 1, 2], list(counts.values()))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert expected[labels].mean() == pytest.approx(1)
    uniform = torch.zeros(3, 3)
    for number, weight in enumerate(expected):
        loss = training.module.recipe.criterion_schedule(0)(uniform, torch.full((3,), number))
        assert float(loss) == pytest.approx(weight * np.log(3), rel=1e-6)
    assert training.datamodule.sampling_schedule(0) is None


@pytest.mark.parametrize(("strategy", "power"), [("weighted", 1.0), ("sqrt", 0.5)])
def test_a_sampler_draws_by_class_size_and_the_loss_is_plain(strategy: str, power: float) -> None:
    training = build_training(
        small_config(imbalance__strategy=strategy), listed({"a": 12, "b": 6, "c": 3})
    )
    weights = training.datamodule.sampling_schedule(0)
    assert isinstance(weights, np.ndarray)
    sizes = np.repeat([12, 6, 3], [12, 6, 3])
    np.testing.assert_allclose(weights * sizes**power / weights[0], 12**power)
    criterion = training.module.recipe.criterion_schedule(0)
    losses = [float(criterion(torch.zeros(1, 3), torch.tensor([k]))) for k in range(3)]
    assert losses == pytest.approx([np.log(3)] * 3)


def test_a_schedule_of_the_users_own(animals: Path, code: Path) -> None:
    code.write_text("def odd(epoch, num_groups, *, deep=2):\n    return deep if epoch % 2 else 1\n")
    training = small_training(
        animals, trainer__epochs=4, unfreeze__name="mine:odd", unfreeze__params={"deep": 3}
    )
    assert [phase.depth for phase in training.phases] == [1, 3, 1, 3]
    with pytest.raises(ConfigError, match=r"unknown parameter 'depth'\. Did you mean 'deep'\?"):
        small_training(animals, unfreeze__name="mine:odd", unfreeze__params={"depth": 3})


@pytest.mark.parametrize("value", ["0", "7", "True", "None", "'all'"])
def test_a_depth_that_does_not_exist_is_refused(value: str, animals: Path, code: Path) -> None:
    code.write_text(f"def wrong(epoch, num_groups):\n    return {value} if epoch else 1\n")
    shown = value.replace("'", ".")
    with pytest.raises(
        ConfigError,
        match=rf"mine:wrong gives depth {shown} for epoch 1 \(.*\); .* layer groups from 1 to 6",
    ):
        small_training(animals, unfreeze__name="mine:wrong")


def test_a_share_of_the_groups_is_a_depth_of_the_users_own_too(animals: Path, code: Path) -> None:
    code.write_text("def share(epoch, num_groups):\n    return [0.5, 1.0, 1.5][epoch]\n")
    training = small_training(animals, unfreeze__name="mine:share")
    assert [phase.depth for phase in training.phases] == [3, 6]
    with pytest.raises(ConfigError, match=r"depth 1\.5 is over 1\.0, which is all groups"):
        small_training(animals, unfreeze__name="mine:share", trainer__epochs=3)


def test_a_schedule_that_fails_is_named(animals: Path, code: Path) -> None:
    code.write_text("def fails(epoch, num_groups):\n    return 2 // (2 - epoch)\n")
    with pytest.raises(ConfigError, match=r"mine:fails .* fails in epoch 2: ZeroDivisionError"):
        small_training(animals, unfreeze__name="mine:fails", trainer__epochs=3)


def test_a_learning_rate_of_the_users_own(animals: Path, code: Path) -> None:
    code.write_text(
        "def square(progress, *, final_factor):\n    return max(final_factor, 1 - progress**2)\n"
        "def bare(progress):\n    return 1.0\n"
    )
    training = small_training(
        animals, lr_schedule__name="mine:square", lr_schedule__warmup_fraction=0.0
    )
    factors = [training.module.recipe.lr_lambda(step) for step in range(6)]
    assert factors == pytest.approx([1 - (step / 6) ** 2 for step in range(6)])
    # a function without final_factor needs none, and one that the user sets cannot apply to it
    assert small_training(animals, lr_schedule__name="mine:bare").module.recipe.lr_lambda(5) == 1
    with pytest.raises(ConfigError, match=r"lr_schedule\.name=mine:bare: .*'final_factor'"):
        small_training(animals, lr_schedule__name="mine:bare", lr_schedule__final_factor=0.5)


def test_a_resumed_network_takes_its_preprocessing_from_the_checkpoint(animals: Path) -> None:
    first = small_training(animals)
    card = ModelCard.from_json(first.module.card)
    changed = replace(card, spec=replace(card.spec, mean=(0.1, 0.2, 0.3)))
    config = small_config(model__weights="/gone/since/weights.pth")
    resumed = build_training(config, manifest_of(animals), checkpoint_card=changed)
    assert resumed.module.spec.mean == (0.1, 0.2, 0.3)
    assert resumed.network.report.source == "random"
    # the run's own settings follow the weights that it started from
    assert resumed.config.model.batch_norm == "frozen"
    with pytest.raises(FinetuneError, match="/gone/since/weights"):
        build_training(config, manifest_of(animals))


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
def test_a_launcher_says_how_many_processes_there_are(
    variables: dict[str, str], expected: int, animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*TORCHRUN, *SRUN, "SLURM_NTASKS", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    training = small_training(animals, trainer__devices="auto", trainer__batch_size=16)
    assert training.config.trainer.devices == expected


@pytest.mark.parametrize(
    ("of_a_task", "workers"), [({"SLURM_CPUS_PER_TASK": "8"}, 2), ({}, 0)], ids=["bound", "shared"]
)
def test_cores_that_a_task_has_for_itself_are_not_shared_again(
    of_a_task: dict[str, str], workers: int, animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SRUN, **of_a_task}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("finetune.builders.resolve.free_cores", lambda: 8)
    training = small_training(
        animals, trainer__devices="auto", trainer__batch_size=16, data__num_workers="auto"
    )
    assert training.config.data.num_workers == workers


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"model__batch_norm": "train"},
            r"^model\.batch_norm=train cannot apply to trainer\.batch_size=8 in 8 parts: the "
            r"statistics of one image are not those of a batch\. Take a larger batch or fewer "
            r"parts, or model\.batch_norm=frozen\.$",
        ),
        (
            {"augment__mixup": 0.2, "model__batch_norm": "frozen"},
            r"^augment\.mixup=0\.2 cannot apply to trainer\.batch_size=8 in 8 parts: one image "
            r"has none to be mixed with\. Take a larger batch or fewer parts\.$",
        ),
    ],
)
def test_what_cannot_stand_alone_is_not_left_alone(
    setting: dict[str, object], message: str, animals: Path
) -> None:
    parts = {"trainer__devices": 2, "trainer__accumulate_grad_batches": 4}
    with pytest.raises(ConfigError, match=message):
        small_training(animals, **parts, **setting)
    small_training(animals, **{**parts, "trainer__accumulate_grad_batches": 2}, **setting)


def test_frozen_statistics_let_an_image_stand_alone(animals: Path) -> None:
    parts = {"trainer__devices": 2, "trainer__accumulate_grad_batches": 4}
    small_training(animals, **parts, model__batch_norm="frozen")
    # only the head trains: the statistics below it rest
    small_training(animals, **parts, model__batch_norm="train", unfreeze__name="linear_probe")


def test_the_seed_alone_decides_the_network(animals: Path) -> None:
    def states(**settings: object) -> dict[str, torch.Tensor]:
        return small_training(animals, **settings).module.state_dict()

    with torch.random.fork_rng():
        first = states(seed=1)
        torch.manual_seed(123)
        again, other = states(seed=1), states(seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["classifier.network.conv1.0.weight"], other["classifier.network.conv1.0.weight"]
    )
    assert os.environ.get("PL_GLOBAL_SEED") is None


@pytest.mark.parametrize(
    ("settings", "mirrored", "by"),
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
def test_the_card_says_whether_training_showed_images_in_a_mirror(
    settings: dict[str, str], mirrored: bool, by: str, animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    training = small_training(animals, model__weights=str(weights), **settings)
    facts = training.module.card["facts"]
    assert (facts["mirrored"], facts["mirrored_by"]) == (mirrored, by)


@pytest.mark.parametrize(
    ("settings", "below", "mirrored"),
    [
        ({"unfreeze__name": "all"}, 24, False),
        ({"unfreeze__name": "all"}, 25, True),
        ({"unfreeze__name": "all", "probe__hflip": "on"}, 24, True),
        ({"unfreeze__name": "linear_probe", "trainer__epochs": "auto"}, 24, True),
    ],
)
def test_before_fine_tuning_only_a_few_images_are_seen_in_a_mirror(
    settings: dict[str, str],
    below: int,
    mirrored: bool,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune.builders.probe_plan.FLIP_IMAGE_LIMIT", below)
    weights = write_weights(tmp_path / "weights.pth")
    training = small_training(
        animals, model__weights=str(weights), augment__name="light", **settings
    )
    assert training.probe is not None
    assert training.probe.views.flipped is mirrored
    assert training.config.probe.hflip == ("on" if mirrored else "off")
