"""OpenMP's threads, which compute torch's operators on a CPU."""

from collections.abc import MutableMapping

_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively(environment: MutableMapping[str, str]) -> bool:
    """Let idle threads sleep instead of spinning, and return whether this call decided it.

    Threads wait for each other after every operator. Beside another busy process, one of them is
    often not running, and by default the others spin for it on the cores that it needs. The number
    of threads does not depend on the load, because it changes how sums are rounded.

    OpenMP reads the variables once, when torch is imported; child processes inherit them.

    Args:
        environment: Environment variables of the process, which are changed unless the user has
            set how threads wait.
    """
    if any(name in environment for name in _VARIABLES):
        return False
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return True
