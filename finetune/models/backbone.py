"""Creation of timm networks: weights, preprocessing, and supported image sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from finetune.errors import ModelError
from finetune.lookup import is_import_path, suggest_name
from finetune.models import torchvision_models
from finetune.models.custom.code_import import import_function
from finetune.models.custom.code_trust import remember_backbone
from finetune.models.custom.contract import find_missing_keys
from finetune.models.custom.custom_network import create_custom_network, load_weights
from finetune.models.layer_groups import find_classifier_parameters
from finetune.models.mlp_head import (
    HeadInit,
    MlpSettings,
    attach_mlp_head,
    initialise_head,
)
from finetune.models.pretrained.creation_errors import check_kwargs, explain_creation_error
from finetune.models.pretrained.input_channels import (
    adapt_statistics,
    check_weights_channels,
    get_stated_channels,
)
from finetune.models.pretrained.load_report import build_load_report, check_loaded, record_loads
from finetune.models.pretrained.preprocessing_values import check_preprocessing
from finetune.models.pretrained.weights import (
    WeightsSource,
    extract_first_line,
    resolve_weights_source,
)
from finetune.types import LoadReport, PreprocessSpec
from finetune.units import format_count

torchvision_models.register()


@dataclass(frozen=True, slots=True)
class Network:
    """A timm model, or a network of one's own, that is ready to train.

    Attributes:
        module: Module from normalised images (B, C, H, W) to logits (B, K).
        spec: Preprocessing that its weights expect.
        report: Report of the parameters that the weights provided.
        model_args: Arguments of ``timm.create_model``, or of one's own function, that build the
            same architecture again.
        missing_keys: Keys of the preprocessing that a network of one's own does not state.
    """

    module: nn.Module
    spec: PreprocessSpec
    report: LoadReport
    model_args: Mapping[str, Any]
    missing_keys: tuple[str, ...] = ()


def create_network(
    backbone: str,
    *,
    num_classes: int,
    num_channels: int = 3,
    weights: str = "hub",
    image_size: int | None = None,
    drop_rate: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    mlp: MlpSettings | None = None,
    head_init: HeadInit = "zero",
    seed: int = 0,
) -> Network:
    """Create a timm model with a new classifier, which is linear and zero by default.

    Args:
        backbone: timm name, with or without a tag, or ``package.module:function``.
        num_classes: Number of classes K.
        num_channels: Channels of the images; timm adapts the first convolution of the weights to
            them, by a sum over its inputs for 1 and by repetition for others.
        weights: "hub", "random", or a local .pth, .pt, .bin or .safetensors file, timm folder or
            run folder.
        image_size: Side of the input in pixels; None for that of the weights.
        drop_rate: Dropout rate before the classifier; None for that of the backbone.
        kwargs: Further arguments of ``timm.create_model``, or of one's own function.
        pretrained_cfg: Overrides of the preprocessing.
        mlp: Hidden layers of the classifier; None for a linear one.
        head_init: First weights of the classifier, see ``initialise_head``.
        seed: Seed of the random initialisation; the global generator is not used.

    Raises:
        ModelError: The backbone is unknown, or the weights are missing, unreadable, unreachable, or
            provide less than 99% of the backbone's parameters.
        StorageError: The disk has no space for the download from the hub.
    """
    check_backbone_name(backbone)
    source = resolve_weights_source(weights, backbone)
    arguments = dict(kwargs or {})
    check_kwargs(arguments)
    check_preprocessing(pretrained_cfg or {})
    _check_channels(arguments.setdefault("in_chans", num_channels), num_channels)
    given_size = (pretrained_cfg or {}).get("input_size") or (num_channels,)
    _check_channels(given_size[0], num_channels)
    stated_channels = get_stated_channels(source)
    check_weights_channels(
        source, stated_channels, num_channels, can_adapt=not is_import_path(backbone)
    )
    if num_channels == 3 and stated_channels in (None, 3):
        del arguments["in_chans"]
    if drop_rate is not None:
        arguments["drop_rate"] = drop_rate
    overlay = {**source.overlay, **(pretrained_cfg or {})}
    with torch.random.fork_rng(devices=[]), record_loads() as loads:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        if is_import_path(backbone):
            module = create_custom_network(
                backbone,
                num_classes=num_classes,
                arguments=arguments,
                image_size=image_size,
            )
            load_weights(module, source, overlay)
        else:
            if image_size is not None and _has_fixed_size(backbone):
                arguments.setdefault("img_size", image_size)
            module = _create_timm_model(backbone, num_classes, source, overlay, arguments)
    head = find_classifier_parameters(module)
    report = build_load_report(module, head, source, loads.get(id(module)))
    check_loaded(report, source)
    if mlp is not None:
        attach_mlp_head(module, mlp)
    initialise_head(module, head_init, seed=seed)
    _drop_state_dict(module)
    spec = _resolve_spec(module, num_channels, image_size)
    _check_size(backbone, module, spec)
    return Network(module, spec, report, arguments, find_missing_keys(module))


def _create_timm_model(
    backbone: str,
    num_classes: int,
    source: WeightsSource,
    overlay: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(
            backbone,
            pretrained=source.pretrained,
            num_classes=num_classes,
            pretrained_cfg_overlay=dict(overlay) or None,
            **arguments,
        )
    except Exception as error:
        raise explain_creation_error(backbone, source, arguments, error) from error
    return module


def is_size_agnostic(network: Network, image_size: int) -> bool:
    """Return whether a network treats images of another size alike, by global pooling.

    A network with layers between its feature map and the classifier, such as a VGG's fc6, accepts
    other sizes by resizing the feature map, which is not the same.
    """
    module = network.module
    num_features = getattr(module, "num_features", None)
    is_pooled = num_features is not None and num_features == getattr(
        module, "head_hidden_size", None
    )
    return is_pooled and accepts_image_size(network, image_size)


def accepts_image_size(network: Network, image_size: int) -> bool:
    """Return whether a forward pass of a square image of ``image_size`` pixels succeeds."""
    module = network.module
    mode = module.training
    example = torch.zeros(1, network.spec.input_size[0], image_size, image_size)
    try:
        with torch.no_grad():
            module.eval()(example.to(next(module.parameters()).device))
    except Exception:  # networks reject sizes with errors of any type
        return False
    finally:
        module.train(mode)
    return True


def check_backbone_name(backbone: str) -> None:
    """Check that timm knows the backbone, or that it can be imported.

    Raises:
        ModelError: It does not; the message names the most similar backbone.
    """
    if is_import_path(backbone):
        import_function(backbone)
        remember_backbone(backbone)
        return
    if backbone.startswith(("hf-hub:", "hf_hub:")):
        return
    if backbone.startswith("local-dir:"):
        raise ModelError(
            f"'{backbone}' is not supported: pass the architecture with --backbone and the folder "
            f"with --weights."
        )
    name, _, tag = backbone.partition(".")
    if not timm.is_model(name):
        raise ModelError(
            f"Unknown backbone '{backbone}'.{suggest_name(name, timm.list_models())} "
            f"Pass any name of `timm.list_models()`, or package.module:function for a network of "
            f"your own."
        )
    tags = timm.list_pretrained(f"{name}.*")
    if tag and backbone not in tags and tags:
        raise ModelError(
            f"Backbone '{name}' has no weights named '{tag}'.{suggest_name(backbone, tags)}"
        )


def create_meta_network(
    backbone: str, *, kwargs: Mapping[str, Any] | None = None
) -> nn.Module | None:
    """Return a network on the meta device, whose tensors have shapes and no data.

    None where that is not possible: for a hub repository, and for networks that compute with their
    weights when they are created.
    """
    if ":" in backbone:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            network: nn.Module = timm.create_model(backbone, num_classes=2, **(kwargs or {}))
        except Exception:  # reported when the real network is created
            return None
    return network


def _check_channels(channels: int, num_channels: int) -> None:
    if channels != num_channels:
        raise ModelError(
            f"The network takes {format_count(channels, 'input channel')}, but images are loaded "
            f"with {num_channels}. Set data.channels={channels}, or leave in_chans and input_size "
            f"out."
        )


def _has_fixed_size(backbone: str) -> bool:
    cfg = timm.get_pretrained_cfg(backbone) if ":" not in backbone else None
    return bool(cfg is not None and cfg.fixed_input_size)


def _check_size(backbone: str, module: nn.Module, spec: PreprocessSpec) -> None:
    """Raise ModelError unless a forward pass of an image of the spec's size succeeds."""
    training = module.training
    try:
        with torch.inference_mode():
            module.eval()(torch.zeros(1, *spec.input_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"'{backbone}' does not accept images of {spec.input_size[-1]} px: "
            f"{extract_first_line(error)}. Choose another --image-size."
        ) from error
    finally:
        module.train(training)


def _drop_state_dict(module: nn.Module) -> None:
    """Remove the loaded tensors from the network's pretrained config, where timm keeps them."""
    cfg = dict(module.pretrained_cfg)  # type: ignore[arg-type]
    cfg.pop("state_dict", None)
    cfg["num_classes"] = module.num_classes
    module.pretrained_cfg = module.default_cfg = cfg  # type: ignore[assignment]


def _resolve_spec(module: nn.Module, num_channels: int, image_size: int | None) -> PreprocessSpec:
    data_config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    _, height, width = data_config["input_size"]
    if image_size is not None:
        height = width = image_size
    return PreprocessSpec(
        input_size=(num_channels, height, width),
        mean=adapt_statistics(data_config["mean"], num_channels, key="mean"),
        std=adapt_statistics(data_config["std"], num_channels, key="std"),
        interpolation=data_config["interpolation"],
        crop_pct=float(data_config["crop_pct"]),
        crop_mode=data_config["crop_mode"],
    )
