r"""Fine-tuning from a linear probe in a plain loop, with one setting changed at a time.

    uv run python scripts/benchmarks/fine_tuning_loop.py results.jsonl \
        --case photos=photos/ --weights resnet18=resnet18.pth \
        base=feature_change:0.8 warm=feature_change:0.8,warmup:0.3 fixed=lr:1e-3

Cases and weights are given as to recipe.py; a fifth of the training images of each class are for
validation, the test images choose nothing. The images are decoded once, with a margin of 15%. The
head is the linear probe of finetune, on the centre of each image and, with mirrored crops, on its
mirror image. Every variant starts from it: AdamW with weight decay 0.05, batches of 32, gradients
clipped to a norm of 1, a linear warm-up times a cosine, random crops of at least 35% of the image.
docs/design/fine-tuning.md reports results.

One JSON object per line: first the probe, then each variant with [accuracy, log loss, macro-F1, log
loss after the temperature that suits the validation images] of the validation and the test images
after each epoch, of weights between probe and end, of the mean of the weights over the second half
of the steps, and of their exponential moving average. The position between probe (0) and end (1)
whose validation log loss after a temperature is least is the chosen one, as in finetune fit. Prints
test accuracies, and validation log losses in brackets. With --last-only, which suits many short
runs, the epochs before the last one, the averages and the test scores of the other positions are
left out.
"""

import copy
import json
import math
import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scripts.benchmarks.lib.comparison.study import load_study
from scripts.benchmarks.lib.loop_optimizer import (
    Variant,
    build_optimizer,
    parse_variant,
)
from scripts.benchmarks.lib.probe_task import ProbeTask, Scores

MAX_GRAD_NORM = 1.0
EMA_DECAY = 0.97
POSITIONS = (0.25, 0.5, 0.75)
"""Positions between the probe, at 0, and the last epoch, at 1, on a straight line of weights."""

State = dict[str, Tensor]


class VariantTraining:
    """Training of one variant, with averages of its weights.

    Args:
        task: Images and probe.
        variant: Settings.
        seed: Seed of the order of the images and of the crops.

    Attributes:
        network: The trained network.
        lr: Peak learning rate of the layer group next to the head.
        temperature: Divisor of the probe's head.
        grad_norms: Norm of the gradients of each step, before clipping.
        start: Weights before the first step.
        mean: Mean of the weights over the second half of the steps.
        ema: Exponential moving average of the weights.
    """

    def __init__(self, task: ProbeTask, variant: Variant, *, seed: int) -> None:
        torch.manual_seed(seed)  # dropout of the backbone
        self._task, self._variant = task, variant
        self._generator = np.random.default_rng(seed)
        smoothing = variant.label_smoothing
        self.temperature = task.fit_temperature(smoothing) if variant.scale_head else 1.0
        self.network = task.build_network(temperature=self.temperature)
        self.lr = variant.lr
        if variant.feature_change:
            self.lr = task.measure_lr(
                self.network,
                feature_change=variant.feature_change,
                layer_decay=variant.layer_decay,
            )
        self._optimizer = build_optimizer(self.network, variant, lr=self.lr)
        self._peak_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._num_steps = task.steps_per_epoch * variant.epochs
        self._step = self._num_averaged = 0
        self.grad_norms: list[float] = []
        self.start = copy.deepcopy(self.network.state_dict())
        self.mean: State = {}
        self.ema = {name: value.clone() for name, value in _get_float_state(self.network).items()}

    def run_epoch(self) -> float:
        """Train for an epoch, and return its mean loss."""
        self.network.train()
        if self._variant.batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        losses = []
        for pixels, labels in self._task.iter_batches(self._generator):
            self._set_rates()
            logits = self._task.compute_logits(self.network, pixels)
            loss = cross_entropy(logits, labels, label_smoothing=self._variant.label_smoothing)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
            self._optimizer.step()
            self._step += 1
            self._average()
            self.grad_norms.append(float(norm))
            losses.append(loss.item())
        return statistics.fmean(losses)

    def _set_rates(self) -> None:
        warmup_steps = max(1.0, self._variant.warmup * self._num_steps)
        factor = min(1.0, (self._step + 1) / warmup_steps)
        factor *= 0.5 * (1 + math.cos(math.pi * self._step / self._num_steps))
        for group, rate in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = rate * factor

    @torch.no_grad()
    def _average(self) -> None:
        current = _get_float_state(self.network)
        for name, value in current.items():
            self.ema[name].lerp_(value, 1 - EMA_DECAY)
        if self._step <= self._num_steps / 2:
            return
        self._num_averaged += 1
        if not self.mean:
            self.mean = {name: value.clone() for name, value in current.items()}
        for name, value in current.items():
            self.mean[name].lerp_(value, 1 / self._num_averaged)

    def build_between(self, position: float) -> nn.Module:
        """Return the network with weights between the probe, at 0, and the present ones, at 1."""
        current = _get_float_state(self.network)
        return self.build_with(
            {
                name: (1 - position) * self.start[name] + position * value
                for name, value in current.items()
            }
        )

    def build_with(self, weights: State) -> nn.Module:
        """Return a copy of the network with other weights."""
        network = copy.deepcopy(self.network)
        network.load_state_dict({**network.state_dict(), **weights})
        return network


def _get_float_state(network: nn.Module) -> State:
    """Return the weights and statistics, without the counters of BatchNorm."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if value.is_floating_point()}


def run_variant(
    task: ProbeTask, variant: Variant, *, seed: int, is_last_only: bool = False
) -> dict[str, Any]:
    """Return the results of a variant.

    Args:
        task: Images and probe.
        variant: Settings.
        seed: Seed of the order of the images and of the crops.
        is_last_only: Whether only the last epoch and the chosen position are scored.
    """
    start = time.process_time()
    training = VariantTraining(task, variant, seed=seed)
    losses, scores = [], []
    for epoch in range(variant.epochs):
        losses.append(round(training.run_epoch(), 3))
        if epoch == variant.epochs - 1 or not is_last_only:
            scores.append(task.score(training.network))
    seconds = time.process_time() - start
    return {
        **asdict(variant),
        "num_steps": len(training.grad_norms),
        "lr": training.lr,
        "temperature": round(training.temperature, 2),
        "val": [val for val, _ in scores],
        "test": [test for _, test in scores],
        "train_loss": losses,
        **_choose_position(task, training, end=scores[-1]),
        **({} if is_last_only else _score_averages(task, training)),
        "first_grad_norm": round(training.grad_norms[0], 2),
        "median_grad_norm": round(statistics.median(training.grad_norms), 2),
        "cpu_seconds": round(seconds, 1),
    }


def _choose_position(
    task: ProbeTask, training: VariantTraining, *, end: tuple[Scores, Scores]
) -> dict[str, Any]:
    """Return the calibrated log loss of validation by position, and the scores of the best."""
    networks = {position: training.build_between(position) for position in POSITIONS}
    losses = {0.0: task.probe_scores[0][-1], 1.0: end[0][-1]}
    for position, network in networks.items():
        losses[position] = task.score_validation(network)[-1]
    chosen = min(losses, key=lambda position: (losses[position], -position))
    scores = {0.0: task.probe_scores, 1.0: end}
    return {
        "position": chosen,
        "losses": dict(sorted(losses.items())),
        "chosen": scores[chosen] if chosen in scores else task.score(networks[chosen]),
    }


def _score_averages(task: ProbeTask, training: VariantTraining) -> dict[str, Any]:
    return {
        "line": {str(p): task.score(training.build_between(p)) for p in POSITIONS},
        "mean": task.score(training.build_with(training.mean)),
        "ema": task.score(training.build_with(training.ema)),
    }


def describe_variant(result: Mapping[str, Any]) -> str:
    """Return a line with the test accuracies of a variant, and validation log losses."""

    def describe(scores: Sequence[Sequence[float]]) -> str:
        val, test = scores
        return f"{test[0]:.3f} ({val[1]:.2f})"

    epochs = [describe(pair) for pair in zip(result["val"], result["test"], strict=True)]
    line = {**result.get("line", {}), f"chosen ({result['position']:g})": result["chosen"]}
    others = line | {name: result[name] for name in ("mean", "ema") if name in result}
    return (
        f"{result['name']}: lr {result['lr']:.1e}; epochs {', '.join(epochs)}; "
        f"{', '.join(f'{name} {describe(pair)}' for name, pair in others.items())}; "
        f"{result['cpu_seconds']:.0f} s"
    )


def create_parser() -> ArgumentParser:
    """Return the parser of the options."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("results", type=Path, help="file of JSON lines to append to")
    parser.add_argument("variants", nargs="+", help="NAME=KEY:VALUE,...")
    parser.add_argument("--case", required=True, help="NAME=FOLDER or a YAML mapping")
    parser.add_argument("--weights", required=True, help="BACKBONE=FILE or a YAML mapping")
    parser.add_argument("--side", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-mirror", action="store_true", help="do not mirror, as for digits")
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16")
    parser.add_argument(
        "--last-only", action="store_true", help="score the last epoch and the chosen position only"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the variants."""
    options = create_parser().parse_args(arguments)
    variants = [parse_variant(text) for text in options.variants]
    study = load_study(None, cases=[options.case], weights=[options.weights])
    (case,), (weights,) = study.cases, study.weights
    torch.set_num_threads(1)
    task = ProbeTask(
        case,
        weights,
        side=options.side,
        seed=options.seed,
        is_mirrored=not options.no_mirror,
        is_bf16=options.bf16,
    )
    val, test = task.probe_scores
    probe = {"name": "probe", "val": val, "test": test, "penalty": task.probe.penalty}
    print(f"probe: test accuracy {test[0]:.3f}, validation log loss {val[1]:.2f}", flush=True)
    _append(options, probe | {"num_train": task.num_train, "num_val": task.num_val})
    for variant in variants:
        result = run_variant(task, variant, seed=options.seed, is_last_only=options.last_only)
        print(describe_variant(result), flush=True)
        _append(options, result)


def _append(options: Namespace, result: Mapping[str, Any]) -> None:
    names = ("case", "weights", "side", "seed", "no_mirror", "bf16")
    line = json.dumps({name: getattr(options, name) for name in names} | dict(result))
    with options.results.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
