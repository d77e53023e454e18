"""Check of the loss and the gradients of each step, and the error that names the step.

The gradients are averaged over the ranks before the check, so that one rank's NaN is in the norm of
all, and all raise in the same step. A loss alone may be NaN on one rank only, as with fp16, whose
gradients may overflow in an ordinary step; then the ranks agree through ``PreemptionCheckpoint``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.diagnosis.divergence_error import Divergence, DivergenceError
from finetune.units import format_scientific

_MAX_NAMED_RATES = 4


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Step of a run.

    Attributes:
        epoch: Epoch, counted from 1.
        step: Optimizer step of the epoch, counted from 1.
        steps_per_epoch: Optimizer steps of an epoch.
        is_first: Whether no step has changed the weights before it.
        learning_rates: Learning rate of each layer group that trains, from the head.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    is_first: bool
    learning_rates: Mapping[str, float]

    def build_error(
        self, loss: float, grad_norm: float, *, is_single: bool = True
    ) -> DivergenceError:
        """Return the error of a step whose loss or gradients are not finite.

        Args:
            loss: Mean loss of the epoch so far on this rank.
            grad_norm: Norm of the gradients of all ranks.
            is_single: Whether there is no other rank.
        """
        if math.isfinite(loss) and not is_single:
            what = "the loss of another process, or a gradient, is not finite"
        elif math.isfinite(loss):
            what = f"the gradients are not finite (norm {grad_norm}), but the loss is,"
        else:
            what = f"the training loss is {loss}"
        return DivergenceError(
            f"Training diverged: {what} in epoch {self.epoch}, step {self.step} of "
            f"{self.steps_per_epoch} (learning rates: {self._describe_rates()}). {self._advise()}",
            self._describe_divergence(what.rstrip(","), step=self.step),
        )

    def build_weight_error(self, group: str) -> DivergenceError:
        """Return the error of a layer group whose weights are not finite after the step."""
        return DivergenceError(
            f"Training diverged: weights of {group} are not finite after epoch {self.epoch} ("
            f"learning rates: {self._describe_rates()}). {self._advise()}",
            self._describe_divergence(f"weights of {group} are not finite"),
        )

    def build_output_error(self, num_bad: int, num_images: int) -> DivergenceError:
        """Return the error of a validation with outputs that are not finite.

        The weights may be finite: statistics of BatchNorm that explode are used by the validation
        alone, as the training normalizes by each batch.

        Args:
            num_bad: Number of images with such outputs.
            num_images: Number of images that were measured.
        """
        return DivergenceError(
            f"Training diverged: the outputs of {num_bad} of {num_images} images measured after "
            f"epoch {self.epoch} are not finite (learning rates: {self._describe_rates()}). "
            f"{self._advise()}",
            self._describe_divergence(
                f"the outputs of {num_bad} of {num_images} measured images are not finite"
            ),
        )

    def _describe_divergence(self, what: str, *, step: int | None = None) -> Divergence:
        """Return the divergence for the diagnosis; without a step after the epoch."""
        return Divergence(
            what=what,
            epoch=self.epoch,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            is_first=self.is_first,
            learning_rates={
                name.removeprefix("lr/"): rate for name, rate in self.learning_rates.items()
            },
        )

    def _describe_rates(self) -> str:
        rates = [
            f"{name.removeprefix('lr/')} {format_scientific(rate)}"
            for name, rate in self.learning_rates.items()
        ]
        if len(rates) <= _MAX_NAMED_RATES:
            return ", ".join(rates)
        return f"{', '.join(rates[:2])} … {rates[-1]}"

    def _advise(self) -> str:
        if self.is_first:
            return (
                "No step has changed the weights before, so that the learning rate is not the "
                "cause: check the loss (loss.name, loss.params) and the weights at the start."
            )
        return (
            "Lower optim.lr or optim.backbone_lr_scale; if the loss or a schedule is your own, "
            "check what it returns."
        )


class DivergenceCheck:
    """Check of each step, on a CPU before the step changes the weights.

    A GPU would have to be waited for. There the values of a step are copied while the next one is
    computed, and checked before that one changes the weights; no checkpoint is written before.

    Args:
        checks_gradients: Whether gradients must be finite; not with fp16, which skips such steps.
        is_agreed: Whether other ranks have to be told of a loss that is not finite on this one.
        is_deferred: Whether a step is checked while the next one is computed, as on a GPU.
    """

    def __init__(self, *, checks_gradients: bool, is_agreed: bool, is_deferred: bool) -> None:
        self.checks_gradients = checks_gradients
        self.is_agreed = is_agreed
        self.is_deferred = is_deferred
        self._pending: tuple[StepInfo, Tensor, torch.cuda.Event | None] | None = None
        self._last: StepInfo | None = None
        self._failure: StepInfo | None = None

    @property
    def failed_step(self) -> int:
        """Step of the epoch whose loss is not finite on this rank, for the others; 0 if none is."""
        return 0 if self._failure is None else self._failure.step

    def check(self, info: StepInfo, loss: Tensor, grad_norm: Tensor) -> None:
        """Check a step, or that before it.

        Args:
            info: The step.
            loss: Sum of the losses of the epoch so far, a scalar.
            grad_norm: Norm of all gradients, the same on all ranks, a scalar.

        Raises:
            DivergenceError: One of them is not finite.
        """
        self._last = info
        values = torch.stack([loss.detach().float(), grad_norm.detach().float().to(loss.device)])
        if not self.is_deferred:
            self._judge(info, values)
            return
        event = None
        if values.is_cuda:  # copied in the background
            host = torch.empty(2, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, event = host, torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        previous, self._pending = self._pending, (info, values, event)
        self._judge_pending(previous)

    def wait(self) -> None:
        """Check the last step, for which a GPU is waited for.

        Raises:
            DivergenceError: Its loss or gradients are not finite.
        """
        pending, self._pending = self._pending, None
        self._judge_pending(pending)

    def build_error(self, step: int | None = None) -> DivergenceError:
        """Return the error of a loss that is not finite on this rank or on another one.

        Args:
            step: Step of the epoch; None for the last one.
        """
        assert self._last is not None, "a step has been checked"
        info = self._last if step is None else replace(self._last, step=step)
        return info.build_error(math.nan, math.nan)

    def _judge_pending(
        self, pending: tuple[StepInfo, Tensor, torch.cuda.Event | None] | None
    ) -> None:
        if pending is not None:
            info, values, event = pending
            if event is not None:
                event.synchronize()
            self._judge(info, values)

    def _judge(self, info: StepInfo, values: Tensor) -> None:
        loss, grad_norm = values.tolist()
        if self.checks_gradients and not math.isfinite(grad_norm):
            raise info.build_error(loss, grad_norm, is_single=not self.is_agreed)
        if not math.isfinite(loss):
            if not self.is_agreed:
                raise info.build_error(loss, grad_norm)
            self._failure = self._failure or info
