"""Check of the libraries that a server needs."""

import importlib.util

from finetune.errors import ConfigError

_MODULES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
"""Modules to names of their distributions."""


def check_serve_extra() -> None:
    """Check that the libraries of the server are installed.

    Raises:
        ConfigError: One is missing; the message has the command that installs it.
    """
    missing = [name for module, name in _MODULES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ConfigError(
            f"finetune serve needs {' and '.join(missing)}, which {_choose_verb(missing)} not "
            f"installed: pip install 'finetune-vision[serve]'"
        )


def _choose_verb(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
