"""The command ``serve``: its options and its output."""

import os
import signal
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from finetune.cli.options.model_options import (
    Device,
    ImageSize,
    Prior,
    TtaOption,
    Weights,
    check_models,
    parse_device,
)
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request
from finetune.errors import INTERRUPTED_EXIT_CODE, ConfigError
from finetune.inference.tta import parse_tta
from finetune.server.intake import limits as server_limits
from finetune.server.intake.limits import ServerLimits
from finetune.system.garbage_collection import import_without_collection

_RUNTIMES = ("auto", "onnx", "torch")
_TOKEN_VARIABLE = "FINETUNE_TOKEN"


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="Run folder, bundle folder, checkpoint or exported model; the probabilities of "
            "several are averaged.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; one that other machines reach needs a token."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Token that clients have to send. FINETUNE_TOKEN sets it, too, and is not seen "
            "by other users of the machine.",
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, help="Largest request in bytes.")
    ] = server_limits.DEFAULT_MAX_BYTES,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Largest image in pixels.")
    ] = server_limits.DEFAULT_MAX_PIXELS,
    max_files: Annotated[
        int, typer.Option("--max-files", min=1, help="Most images of a request.")
    ] = server_limits.DEFAULT_MAX_FILES,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds to receive a request, and again to answer it."),
    ] = server_limits.DEFAULT_TIMEOUT_SECONDS,
    queue: Annotated[
        int,
        typer.Option(min=1, help="Most images in progress; further ones are told to come later."),
    ] = server_limits.DEFAULT_QUEUE_SIZE,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Most images per batch.")
    ] = server_limits.DEFAULT_BATCH_SIZE,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            "--max-wait-ms", min=0, help="Milliseconds that an idle network waits for a batch."
        ),
    ] = 0.0,
    runtime: Annotated[
        str, typer.Option(help="What computes: onnx, torch, or auto for that of the model.")
    ] = "auto",
    samples: Annotated[
        int, typer.Option(min=0, help="Held-out photos of the run that the page offers.")
    ] = 8,
    device: Device = "auto",
    tta: TtaOption = "none",
    image_size: ImageSize = None,
    weights: Weights = "equal",
    prior: Prior = None,
) -> None:
    """Serve a model over HTTP, with a page to try it."""
    limits = ServerLimits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_files=max_files,
        timeout_seconds=timeout,
        queue_size=queue,
        batch_size=batch_size,
        max_wait_seconds=max_wait_ms / 1000,
    )
    if runtime not in _RUNTIMES:
        raise ConfigError(
            f"--runtime {runtime}: unknown runtime. Choose one of {', '.join(_RUNTIMES)}."
        )
    check_models(models, prior, has_images=False)
    views, accelerator = parse_tta(tta), parse_device(device)
    given = token if token is not None else os.environ.get(_TOKEN_VARIABLE) or None
    with exit_on_stop_request():
        reporter = build_console_reporter()
        with import_without_collection():
            from finetune.commands.serve.serve import ServerAddress
            from finetune.commands.serve.serve import serve as command

        def announce(url: str) -> None:
            suffix = "" if given is None else " (the page asks for the token)"
            reporter.note(f"Serving at {url}{suffix}; interface: {url}/docs. Stop with Ctrl-C.")

        signum = command(
            models,
            address=ServerAddress(host, port, given),
            limits=limits,
            runtime=cast('Literal["auto", "onnx", "torch"]', runtime),
            num_samples=samples,
            device=accelerator,
            tta=views,
            image_size=image_size,
            weights=weights,
            prior=prior,
            reporter=reporter,
            on_ready=announce,
        )
    reporter.note("Stopped.")
    if signum == signal.SIGINT:
        # typer.Exit with this code would be reported as an error
        raise SystemExit(INTERRUPTED_EXIT_CODE)
