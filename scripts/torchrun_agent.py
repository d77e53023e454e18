"""torchrun with the exit codes of its workers, which a scheduler decides by.

Takes torchrun's own options, and differs in two things: torchrun itself ends with 1 whatever
happened, and starts workers anew also after errors that they would only meet again.
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

FINAL = {
    error.exit_code
    for error in (ConfigError, DataError, ModelError, RunFolderError, OutOfMemoryError)
}
"""Nobody mends these by trying again."""


def main(options: list[str]) -> int:
    """Run torchrun and return the exit code that says most of how its workers ended."""
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, _leave)  # torchrun handles them once it has workers

    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api

    codes: list[int] = []
    api.LocalElasticAgent = _agent_noting(codes)
    try:
        run.main(options)
    except SignalException:
        return INTERRUPTED_EXIT_CODE if codes == [INTERRUPTED_EXIT_CODE] else PREEMPTED_EXIT_CODE
    except ChildFailedError:
        return summary(codes)  # the workers have said why
    except (RendezvousError, DistError) as error:
        sys.stderr.write(
            f"torchrun: another machine is gone, does not come, or is not reached: "
            f"{type(error).__name__}: {error}\n"
        )
        return summary(codes)
    return 0


def _agent_noting(codes: list[int]) -> type:
    """Return torchrun's agent, which now notes how workers ended and starts none in vain."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import SignalException

    class Agent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            if result.failures:
                codes[:] = [failure.exitcode for failure in result.failures.values()]
            if FINAL & set(codes):
                self._remaining_restarts = 0
            return result

        def _invoke_run(self, role: str = "default") -> Any:
            try:
                return super()._invoke_run(role)
            except SignalException as stop:
                if stop.sigval != signal.SIGINT:
                    raise
                # a terminal's Ctrl-C has reached the workers too; a second one ends them at once
                codes[:] = [INTERRUPTED_EXIT_CODE]
                raise SignalException("Ctrl-C", signal.SIGTERM) from stop

    return Agent


def summary(codes: Iterable[int]) -> int:
    """Return one exit code for those of a machine's workers, where a signal is a negative one.

    What is final comes first, then what only asks to be started again.
    """
    found = set(codes)
    for code in (*sorted(FINAL), PREEMPTED_EXIT_CODE):
        if code in found:
            return code
    own = sorted(code for code in found if code > 0)
    killed = sorted(128 - code for code in found if code < 0)
    return (own or killed or [TrainingError.exit_code])[0]


def _leave(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise SystemExit(PREEMPTED_EXIT_CODE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
