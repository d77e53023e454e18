"""torchrun with the exit codes of its workers, for schedulers that decide by them.

Accepts the options of torchrun and differs in two respects: torchrun always exits with 1, and it
restarts workers even after errors that would occur again. The agent class is replaced through
``torch.distributed.launcher.api``, which is not a public interface; tests/scripts/test_torchrun.py
fails if a release of torch changes it.
"""

import signal
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

from finetune.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    ConfigError,
    DataError,
    ModelError,
    OutOfMemoryError,
    RunFolderError,
    TrainingError,
)

FINAL_EXIT_CODES = {
    error.exit_code
    for error in (ConfigError, DataError, ModelError, RunFolderError, OutOfMemoryError)
}
"""Exit codes of errors that a restart cannot fix."""


def main(options: list[str]) -> int:
    """Run torchrun and return the most informative exit code of its workers."""
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, _exit_preempted)  # torchrun handles them once it has workers

    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api

    codes: list[int] = []
    api.LocalElasticAgent = _create_agent_class(codes)  # type: ignore[attr-defined]
    try:
        run.main(options)
    except SignalException:
        return INTERRUPTED_EXIT_CODE if codes == [INTERRUPTED_EXIT_CODE] else PREEMPTED_EXIT_CODE
    except ChildFailedError:
        return select_exit_code(codes)  # the workers have printed the reason
    except (RendezvousError, DistError) as error:
        sys.stderr.write(
            f"torchrun: another node was lost, did not join or is unreachable: "
            f"{type(error).__name__}: {error}\n"
        )
        return select_exit_code(codes)
    return 0


def _create_agent_class(codes: list[int]) -> Any:
    """Return an agent class that records exit codes and does not restart after final errors."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import SignalException

    class Agent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            if result.failures:
                codes[:] = [failure.exitcode for failure in result.failures.values()]
            if FINAL_EXIT_CODES & set(codes):
                self._remaining_restarts = 0
            return result

        def _invoke_run(self, role: str = "default") -> Any:
            try:
                return super()._invoke_run(role)
            except SignalException as stop:
                if stop.sigval != signal.SIGINT:
                    raise
                # Ctrl-C of a terminal also reached the workers; a second one stops them at once
                codes[:] = [INTERRUPTED_EXIT_CODE]
                raise SignalException("Ctrl-C", signal.SIGTERM) from stop

    return Agent


def select_exit_code(codes: Iterable[int]) -> int:
    """Return one exit code for the workers of a node; a negative code is a signal.

    Final errors have priority, then preemption, other exit codes and signals.
    """
    unique = set(codes)
    for code in (*sorted(FINAL_EXIT_CODES), PREEMPTED_EXIT_CODE):
        if code in unique:
            return code
    positive = sorted(code for code in unique if code > 0)
    signals = sorted(128 - code for code in unique if code < 0)
    return (positive or signals or [TrainingError.exit_code])[0]


def _exit_preempted(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise SystemExit(PREEMPTED_EXIT_CODE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
