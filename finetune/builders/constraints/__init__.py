"""Constraints between settings: the table of combinations that cannot run.

To add one, append a ``Constraint`` to a table of this package and a case to its contract test.
Ranges of one value belong to the config sections, parameters of a named component to its builder,
and contradictions within ``imbalance`` to ``config.imbalance``, which is checked before any work.
"""

from finetune.builders.constraints.constraint import Constraint
from finetune.builders.constraints.execution import (
    BATCHES,
    HARDWARE,
    SHARDING,
    WEIGHT_AVERAGING,
)
from finetune.builders.constraints.image_rules import IMAGES
from finetune.builders.constraints.optimization_rules import OPTIMIZATION
from finetune.builders.constraints.probe_rules import PROBE, PROBE_ONLY
from finetune.builders.resolve import RunSpec

__all__ = ["CONSTRAINTS", "Constraint", "check_constraints"]

CONSTRAINTS: tuple[Constraint, ...] = (
    *HARDWARE,
    *PROBE,
    *PROBE_ONLY,
    *BATCHES,
    *WEIGHT_AVERAGING,  # needs the steps of an epoch, which valid batches make
    *SHARDING,
    *OPTIMIZATION,
    *IMAGES,
)
"""All constraints, in the order in which they are checked."""


def check_constraints(run: RunSpec) -> None:
    """Raise an error for the first violated constraint.

    Raises:
        ConfigError: Settings cannot be combined; the message names them.
        DataError: There are too few images for the settings.
    """
    for constraint in CONSTRAINTS:
        if constraint.is_violated(run.config, run):
            raise constraint.error(constraint.format_message(run))
