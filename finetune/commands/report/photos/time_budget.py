"""Time that pictures may take."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """Seconds from the creation on.

    Attributes:
        seconds: Seconds that there are in all.
        started: Time of the creation, of a monotonic clock.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float:
        """Seconds that are left; 0 if they are spent."""
        return max(0.0, self.started + self.seconds - time.monotonic())

    @property
    def is_spent(self) -> bool:
        """Whether no time is left."""
        return self.remaining == 0
