"""torch scheduler that sets the learning rates, and the momentum, in each optimizer step."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.training.schedules.plateau import PlateauFactor


class FactorScheduler(LambdaLR):
    """``LambdaLR`` whose rates are also lowered on a plateau, and which may set the momentum.

    Args:
        optimizer: Optimizer with the peak learning rates.
        lr_lambda: Function from completed optimizer steps to the factor of all learning rates.
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
        rates = [
            base * lr_lambda(self.last_epoch) * self._plateau.value
            for base, lr_lambda in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule, and that of the plateau if there is one."""
        state = super().state_dict()
        for key in ("_plateau", "_momentum_lambda"):
            state.pop(key)
        if self._plateau is not None:
            state["plateau"] = self._plateau.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the schedule and of the plateau."""
        state = dict(state_dict)
        plateau_state = state.pop("plateau", None)
        super().load_state_dict(state)
        if self._plateau is not None and plateau_state is not None:
            self._plateau.load_state_dict(plateau_state)
