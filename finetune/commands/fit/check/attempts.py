"""Attempts to learn the images of a check: as the run would, then with one setting changed."""

import math
from collections.abc import Callable

from torch import Tensor

from finetune.builders import Training
from finetune.commands.fit.check.busy_clock import count_seconds, read_clocks
from finetune.commands.fit.check.learn_images import learn_images
from finetune.commands.fit.check.learning_trace import LearningTrace
from finetune.commands.fit.check.plain_loss import (
    compute_chance_loss,
    get_plain_criterion,
    measure_batch,
)
from finetune.commands.fit.check.start_head import (
    FINAL_PENALTIES,
    choose_learning_rate,
    fit_start_head,
)
from finetune.config.optimizer_defaults import HEAD_LR, UNMEASURED_BACKBONE_LR_SCALE
from finetune.data.dataset import Batch

_MAIN_FRACTION = 0.5
"""Fraction of the time for the settings of the run if the loss does not fall; else all of it."""

_DEEPER_FRACTION = 0.5

_FACTORS = (10.0, 100.0, 1000.0)


class Attempts:
    """Attempts to learn the same images from the same weights, which share a time limit.

    Args:
        training: Objects of the run; its network keeps the weights of the last attempt.
        batch: Images to learn, on the device.
        time_limit_seconds: Time limit of all attempts, as ``count_seconds`` counts it.
        on_step: Function that is called after each step.

    Attributes:
        lr_reason: Reason for the learning rate of the run; empty if the config gave it.
    """

    def __init__(
        self,
        training: Training,
        batch: Batch,
        *,
        time_limit_seconds: float,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.training, self.batch = training, batch
        self.on_step = on_step
        self._time_limit, self._clocks = time_limit_seconds, read_clocks()
        self.lr_reason = ""
        self._start: dict[str, Tensor] = {}

    def learn_as_run(self) -> LearningTrace:
        """Learn the images with the settings of the run, at the depth of its deepest phase.

        A run with a linear probe starts with a head that is fitted to its images; so does this. If
        it ends with the probe, nothing else is trained.
        """
        training = self.training
        if training.is_probe_only:
            trace = self._fit_probe_only()
            self._keep_start()
            return trace
        if training.probe is not None:
            fit_start_head(training, self.batch)
        lr, self.lr_reason = choose_learning_rate(training, self.batch)
        self._keep_start()
        depth = max(phase.depth for phase in training.phases)
        return self._learn(lr=lr, depth=depth, fraction=1.0, patience_fraction=_MAIN_FRACTION)

    def try_deeper(self, main: LearningTrace) -> LearningTrace | None:
        """Learn the images with all layer groups, from the start; None if all of them trained."""
        depth = len(self.training.module.classifier.groups)
        if main.depth == depth or main.gradient_norm == 0 or main.is_cut_off:
            return None
        lr = self._get_usual_rate() if main.lr is None else main.lr
        return self._learn(lr=lr, depth=depth, fraction=_DEEPER_FRACTION)

    def try_other_rates(self, main: LearningTrace) -> tuple[LearningTrace, ...]:
        """Learn the images at other rates, from the start, until one of them does.

        They are lower where the loss rose and higher where it did not, and the usual rate of the
        optimizer comes first.
        """
        if main.lr is None or main.gradient_norm == 0 or main.is_cut_off:
            return ()
        usual, is_high = self._get_usual_rate(), not main.end_loss <= main.start_loss
        exponent = -1 if is_high or main.is_exploded else 1
        rates = [main.lr * factor**exponent for factor in _FACTORS]
        if (usual < main.lr) == (exponent < 0) and usual != main.lr:
            rates = [usual, *(rate for rate in rates if not math.isclose(rate, usual))]
        traces: list[LearningTrace] = []
        for number, lr in enumerate(rates):
            if self.seconds_left == 0:
                break
            fraction = 1 / (len(rates) - number)
            traces.append(self._learn(lr=lr, depth=main.depth, fraction=fraction))
            if traces[-1].is_learned:
                break
        return tuple(traces)

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit, not negative."""
        return max(0.0, self._time_limit - count_seconds(self._clocks))

    def _keep_start(self) -> None:
        state = self.training.module.classifier.state_dict()
        self._start = {name: tensor.detach().clone() for name, tensor in state.items()}

    def _learn(
        self, *, lr: float, depth: int, fraction: float, patience_fraction: float = 1.0
    ) -> LearningTrace:
        """Learn the images from the start, in a fraction of the time that is left."""
        self.training.module.classifier.load_state_dict(self._start)
        return learn_images(
            self.training,
            self.batch,
            lr=lr,
            depth=depth,
            time_limit_seconds=fraction * self.seconds_left,
            patience_seconds=patience_fraction * fraction * self.seconds_left,
            on_step=self.on_step,
        )

    def _fit_probe_only(self) -> LearningTrace:
        start, module = read_clocks(), self.training.module
        criterion, labels = get_plain_criterion(self.training), self.batch["label"]
        fit_start_head(self.training, self.batch, penalties=FINAL_PENALTIES)
        loss, num_errors = measure_batch(module, self.batch, criterion)
        chance_loss = compute_chance_loss(labels, len(self.training.data.classes), criterion)
        return LearningTrace(
            lr=None,
            depth=1,
            num_images=len(labels),
            start_loss=chance_loss,
            chance_loss=chance_loss,
            losses=(),
            end_loss=loss,
            start_errors=num_errors,
            num_errors=num_errors,
            gradient_norm=None,
            num_steps=0,
            seconds=count_seconds(start),
            is_timed_out=False,
        )

    def _get_usual_rate(self) -> float:
        """Return the rate of the head where none is measured, lower if it is that of all layers."""
        optim, facts = self.training.config.optim, self.training.facts
        is_for_all = facts.is_pretrained and optim.backbone_lr_scale == 1
        scale = UNMEASURED_BACKBONE_LR_SCALE[optim.name] if is_for_all else 1.0
        return HEAD_LR[optim.name] * scale
