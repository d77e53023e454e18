"""torch scheduler that sets the learning rates, and the momentum, in each optimizer step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.training.schedules.learning_rate import compute_lr_factor
from finetune.training.schedules.plateau import PlateauFactor


@dataclass(frozen=True)
class LrFactor:
    """Factor of all learning rates as a function of the completed optimizer steps.

    Attributes:
        schedule: Function from progress in [0, 1] to factor.
        num_steps: Number of steps of the run.
        warmup_steps: Number of steps of each warmup; 0 disables it.
        phase_starts: Steps at which layers are unfrozen, ascending, the first of them 0.
    """

    schedule: Callable[[float], float]
    num_steps: int
    warmup_steps: int
    phase_starts: Sequence[int] = (0,)

    def __call__(self, step: int) -> float:
        """Compute the factor at a step; see ``compute_lr_factor``."""
        return compute_lr_factor(
            step,
            schedule=self.schedule,
            num_steps=self.num_steps,
            warmup_steps=self.warmup_steps,
            phase_starts=self.phase_starts,
        )


class FactorScheduler(LambdaLR):
    """``LambdaLR`` whose rates are also lowered on a plateau, and which may set the momentum.

    Args:
        optimizer: Optimizer with the peak learning rates.
        lr_lambda: Function from completed optimizer steps to the factor of all learning rates. The
            warmup of an ``LrFactor`` is part of the state: a run that is resumed with more epochs
            does not repeat it.
        plateau: Further factor, which the validation metric lowers; None without one.
        momentum_lambda: Function from completed optimizer steps to the momentum of SGD and RMSprop,
            or to the first beta of Adam and AdamW; None leaves it as it is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float],
        *,
        plateau: PlateauFactor | None = None,
        momentum_lambda: Callable[[int], float] | None = None,
    ) -> None:
        self._plateau = plateau
        self._momentum_lambda = momentum_lambda
        super().__init__(optimizer, lr_lambda)

    def get_lr(self) -> list[Any]:
        """Return the learning rates of the present step."""
        rates = super().get_lr()
        return rates if self._plateau is None else [rate * self._plateau.value for rate in rates]

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rates, and the momentum, of the next step."""
        super().step(epoch)
        self._set_momentum()

    def _set_momentum(self) -> None:
        """Set the momentum of the next step, if there is a function of it."""
        if self._momentum_lambda is None:
            return
        momentum = self._momentum_lambda(self.last_epoch)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum

    def update_plateau(self, metric: float) -> None:
        """Register the metric of an epoch, and set the learning rates of the next step anew."""
        assert self._plateau is not None, "called with a plateau only"
        self._plateau.update(metric)
        self._set_rates()

    def _set_rates(self) -> None:
        """Set the learning rates of the next step, with the operations of ``get_lr``."""
        rates: list[Any] = [
            base * lr_lambda(self.last_epoch)
            for base, lr_lambda in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        if self._plateau is not None:
            rates = [rate * self._plateau.value for rate in rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule, its warmup, and that of the plateau if there is one."""
        state = super().state_dict()
        for key in ("_plateau", "_momentum_lambda"):
            state.pop(key)
        # in place of all attributes of the functions
        state["lr_lambdas"] = [None] * len(self.lr_lambdas)
        if isinstance(self.lr_lambdas[0], LrFactor):
            state["warmup_steps"] = self.lr_lambdas[0].warmup_steps
        if self._plateau is not None:
            state["plateau"] = self._plateau.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, and set learning rates and momentum by the present schedule.

        They are those of the optimizer's state, unless the schedule has another length by now.
        """
        state = dict(state_dict)
        plateau_state = state.pop("plateau", None)
        warmup_steps = state.pop("warmup_steps", None)  # None in checkpoints of older releases
        super().load_state_dict(state)
        if self._plateau is not None and plateau_state is not None:
            self._plateau.load_state_dict(plateau_state)
        if warmup_steps is not None:
            self.lr_lambdas = [
                replace(factor, warmup_steps=warmup_steps)
                if isinstance(factor, LrFactor)
                else factor
                for factor in self.lr_lambdas
            ]
        self._set_rates()
        self._set_momentum()
