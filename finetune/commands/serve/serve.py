"""A model behind an HTTP server, until a signal ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import finetune
from finetune.bundle.bundle import ModelBundle
from finetune.commands.ensembles.combined_model import load_models, to_paths
from finetune.commands.serve.model_facts import build_model_facts
from finetune.commands.serve.predictor_model import PredictorModel
from finetune.commands.serve.runtime import Runtime, choose_runtime
from finetune.commands.serve.sample_photos import find_data_name, read_sample_photos
from finetune.commands.serve.serve_extra import check_serve_extra
from finetune.commands.target_prior import apply_prior
from finetune.inference.input_checks import check_views, describe_far_size, resize_input
from finetune.inference.predictor import Predictor
from finetune.inference.tta import parse_tta
from finetune.server.intake.limits import ServerLimits
from finetune.system.hardware import prepare_accelerator
from finetune.types import ReadOptions, Reporter, StrPath, Tta
from finetune.units import format_count

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
DEFAULT_NUM_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Address that a server listens on, and the token of its clients.

    Attributes:
        host: Host name or address.
        port: Port; 0 for a free one.
        token: Token that clients have to send; None for none, which loopback alone allows.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None


def serve(
    model: StrPath | Sequence[StrPath],
    *,
    address: ServerAddress | None = None,
    limits: ServerLimits | None = None,
    runtime: Runtime = "auto",
    num_samples: int = DEFAULT_NUM_SAMPLES,
    device: str = "auto",
    tta: Tta | str | bool = Tta.NONE,
    image_size: int | None = None,
    weights: str = "equal",
    prior: str | None = None,
    reporter: Reporter | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> int | None:
    """Serve a model over HTTP until SIGINT or SIGTERM, and return the number of the signal.

    Requests that have arrived are answered before it returns.

    Args:
        model: Run folder, bundle folder, checkpoint or exported model; the probabilities of several
            are averaged.
        address: Where to listen; None for port 8000 of this machine.
        limits: Limits of requests; None for the usual ones.
        runtime: Library that computes the network: "torch", "onnx", or "auto" for that of the file.
        num_samples: Number of held-out photos of the run that the page offers.
        device: "cpu", "cuda", "mps" or "auto".
        tta: Views of each image to average over, see ``predict``.
        image_size: Height and width of the input in pixels; None for those of the model.
        weights: Weights of several models: "equal" or "val".
        prior: Target class prior; None takes that of the model card.
        reporter: Receiver of notes and warnings.
        on_ready: Callback with the address for browsers, when clients can connect.

    Raises:
        FinetuneError: Invalid arguments or model, or the port is in use; the message names the
            remedy.
    """
    reporter = reporter or Reporter()
    address, limits = address or ServerAddress(), limits or ServerLimits()
    check_serve_extra()
    from finetune.server.connections.access_control import check_access
    from finetune.server.connections.server_process import format_url, open_socket, run_server

    check_access(address.host, address.token)
    paths, tta = to_paths(model), parse_tta(tta)
    bound = open_socket(address.host, address.port)
    try:
        accelerator = prepare_accelerator(device, setting="--device")
        bundle = load_models(
            paths,
            weights=weights,
            device=accelerator,
            batch_size=limits.batch_size,
            reporter=reporter,
        )
        if (note := describe_far_size(bundle, image_size)) is not None:
            reporter.note(note)
        bundle = resize_input(apply_prior(bundle, prior, reporter), image_size)
        check_views(bundle, tta)
        with choose_runtime(bundle, runtime, reporter=reporter) as (computed, runtime_name):
            predictor = Predictor(
                computed,
                device=accelerator if runtime_name == "torch" else "cpu",
                batch_size=limits.batch_size,
                options=ReadOptions(max_pixels=limits.max_pixels),
                tta=tta,
            )
            served = _build_model(
                predictor, bundle, paths[0], runtime_name, num_samples, limits, reporter
            )
            seconds = served.measure_seconds(limits.batch_size)
            reporter.note(
                f"{limits.batch_size / seconds:.1f} images per second in batches of "
                f"{format_count(limits.batch_size, 'image')}, by {runtime_name} on "
                f"{predictor.device.type}"
            )
            from finetune.server.application import ModelServer

            server = ModelServer(
                served,
                limits=limits,
                token=address.token,
                version=finetune.__version__,
                seconds_per_image=seconds / limits.batch_size,
                on_error=reporter.warn,
            )
            url = format_url(bound, address.host)
            server.start()
            try:
                return run_server(
                    server.app,
                    bound,
                    limits=limits,
                    on_ready=lambda: None if on_ready is None else on_ready(url),
                )
            finally:
                server.stop()
    finally:
        bound.close()


def _build_model(
    predictor: Predictor,
    bundle: ModelBundle,
    path: Path,
    runtime_name: str,
    num_samples: int,
    limits: ServerLimits,
    reporter: Reporter,
) -> PredictorModel:
    facts = build_model_facts(
        predictor.card,
        runtime=runtime_name,
        device=predictor.device.type,
        data_name=find_data_name(path),
    )
    samples, reason = read_sample_photos(
        path, count=num_samples, options=predictor.card.read_options
    )
    if reason:
        reporter.note(reason)
    return PredictorModel(
        predictor,
        facts=facts,
        samples=samples,
        saliency_bundle=bundle,
        max_saliency_seconds=limits.timeout_seconds,
    )
