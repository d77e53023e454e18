"""A timm network with its weights: created, loaded, and the load proved."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.lookup import did_you_mean
from finetune.models import zoo
from finetune.models.groups import classifier_parameters
from finetune.types import LoadReport, PreprocessSpec

MIN_LOADED_SHARE = 0.99

zoo.register()


@dataclass(frozen=True, slots=True)
class Network:
    """A timm model that is ready to train.

    Attributes:
        module: Takes normalised images (B, 3, H, W), returns logits (B, K); the classifier is zero.
        spec: The preprocessing that its weights expect.
        report: What the weights' source filled.
        model_args: Arguments of ``timm.create_model`` that build the same network again.
    """

    module: nn.Module
    spec: PreprocessSpec
    report: LoadReport
    model_args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where weights come from, as timm's factory wants it."""

    label: str
    pretrained: bool
    overlay: dict[str, Any]


def create_network(
    backbone: str,
    *,
    num_classes: int,
    weights: str = "hub",
    image_size: int | None = None,
    drop_rate: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Network:
    """Return a timm model with a new linear classifier that starts at zero.

    Args:
        backbone: timm name, with or without a tag.
        num_classes: K.
        weights: "hub", "random", or a local .pth, .pt, .bin or .safetensors file, timm folder or
            run folder.
        image_size: Side in pixels; None keeps what the weights expect.
        drop_rate: Dropout before the classifier; None keeps what the backbone has.
        kwargs: Further arguments of ``timm.create_model``.
        pretrained_cfg: Overrides of the preprocessing.
        seed: Of the random initial values; the global generator is left alone.

    Raises:
        ModelError: An unknown backbone, or weights that are missing, unreadable, out of reach or
            fill less than 99% of the backbone's parameters.
    """
    _check_name(backbone)
    source = _weights_source(weights, backbone)
    arguments = dict(kwargs or {})
    _check_channels(arguments.get("in_chans", 3))
    if drop_rate is not None:
        arguments["drop_rate"] = drop_rate
    overlay = {**source.overlay, **(pretrained_cfg or {})}
    if image_size is not None and _has_fixed_size(backbone):
        arguments.setdefault("img_size", image_size)
    with torch.random.fork_rng(devices=[]), _recorded_loads() as loads:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs too
        try:
            module: nn.Module = timm.create_model(
                backbone,
                pretrained=source.pretrained,
                num_classes=num_classes,
                pretrained_cfg_overlay=overlay or None,
                **arguments,
            )
        except Exception as error:
            raise ModelError(_why_not_created(backbone, source, arguments, error)) from error
    head = classifier_parameters(module)
    report = _load_report(module, head, source, loads.get(id(module)))
    _check_loaded(report, source)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in head:
                parameter.zero_()
    _forget_source(module)
    return Network(module, _spec(module, image_size), report, arguments)


def is_pretrained(weights: str) -> bool:
    """Tell whether training starts from learned weights."""
    return weights != "random"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file, without running anything that it holds.

    Raises:
        ModelError: The file is no such file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read as weights: {_first_line(error)}. Give a state dict saved by "
            f"torch.save or a .safetensors file."
        ) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a damaged pickle raises
        # torch's own message advises to run the file's code
        raise ModelError(
            f"{path} is damaged or holds more than tensors, so it is not opened. Give a file that "
            f"torch.save wrote of a state_dict() alone."
        ) from error
    for key in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no state dict. Save model.state_dict() with torch.save.")
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _check_name(backbone: str) -> None:
    if backbone.startswith(("hf-hub:", "hf_hub:")):
        return
    if backbone.startswith("local-dir:"):
        raise ModelError(
            f"'{backbone}': name the architecture with --backbone and the folder with --weights."
        )
    name, _, tag = backbone.partition(".")
    if not timm.is_model(name):
        raise ModelError(
            f"Unknown backbone '{backbone}'.{did_you_mean(name, timm.list_models())} "
            f"Any timm model name is taken."
        )
    tags = timm.list_pretrained(f"{name}.*")
    if tag and backbone not in tags and tags:
        raise ModelError(
            f"Backbone '{name}' has no weights named '{tag}'.{did_you_mean(backbone, tags)}"
        )


def _check_channels(channels: int) -> None:
    if channels != 3:
        raise ModelError(
            f"The network reads {channels} channels, but images are read as RGB. Leave in_chans "
            f"and the first number of input_size at 3."
        )


def _has_fixed_size(backbone: str) -> bool:
    cfg = timm.get_pretrained_cfg(backbone) if ":" not in backbone else None
    return bool(cfg is not None and cfg.fixed_input_size)


def _weights_source(weights: str, backbone: str) -> _Source:
    if weights == "random":
        return _Source("random", False, {})
    if weights == "hub":
        _check_reachable(backbone)
        return _Source(f"hub ({backbone})", True, {})
    path = Path(weights).expanduser()
    if not path.exists():
        raise ModelError(
            f"The weights {weights} do not exist. Give a file or folder, 'hub' or 'random'."
        )
    cfg: dict[str, Any] = {}
    file = path
    if path.is_dir():
        file, cfg = _timm_folder(path, backbone)
    # another number of classes than any model has makes timm leave the old classifier out
    return _Source(str(path), True, {**cfg, "state_dict": read_state_dict(file), "num_classes": -1})


def _timm_folder(path: Path, backbone: str) -> tuple[Path, dict[str, Any]]:
    """Return the weights file and the preprocessing of a timm folder, bundle or run folder."""
    folder = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is no timm folder: config.json is missing or damaged. Give a folder that timm "
            f"or `finetune export` wrote, or a weights file."
        ) from error
    if architecture != backbone.partition(".")[0]:
        raise ModelError(
            f"{path} holds weights of '{architecture}', but the backbone is '{backbone}'. "
            f"Add --backbone {architecture}."
        )
    cfg = dict(config.get("pretrained_cfg", {}))
    for key in ("num_classes", "label_names", "architecture", "tag", "url", "hf_hub_id"):
        cfg.pop(key, None)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name, cfg
    raise ModelError(f"{path} holds no model.safetensors. Export it again.")


def _check_reachable(backbone: str) -> None:
    """Raise at once where the hub's host has no address; its client would try for a minute."""
    cfg = timm.get_pretrained_cfg(backbone) if ":" not in backbone else None
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return
    if cfg is None or _is_cached(cfg):
        return
    if cfg.hf_hub_id:
        host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    else:
        host = urlparse(str(cfg.url or "")).hostname
    if not host:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ModelError(
            f"The weights of '{backbone}' lie on {host}, which this machine does not reach. Pass a "
            f"local file or folder with --weights, or --weights random to train from scratch."
        ) from error


def _is_cached(cfg: Any) -> bool:
    if cfg.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        repo = str(cfg.hf_hub_id)
        if repo.endswith("/"):
            repo += f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
        return any(
            isinstance(try_to_load_from_cache(repo, name), str)
            for name in ("model.safetensors", "pytorch_model.bin")
        )
    name = Path(urlparse(cfg.url or "").path).name
    return bool(name) and Path(torch.hub.get_dir(), "checkpoints", name).is_file()


@dataclass(frozen=True, slots=True)
class _Load:
    """What one ``load_state_dict`` left over: unfilled keys, and sizes of keys without a place."""

    missing: tuple[str, ...]
    unused: Mapping[str, int]


@contextmanager
def _recorded_loads() -> Iterator[dict[int, _Load]]:
    """Note which keys each ``load_state_dict`` inside the block left unfilled, by module id.

    timm loads with ``strict=False`` as soon as the number of classes differs, and says nothing
    when no key fits.
    """
    loads: dict[int, _Load] = {}
    original = nn.Module.load_state_dict

    def recording(self: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = original(self, state, *args, **kwargs)
        unused = {name: state[name].numel() for name in result.unexpected_keys}
        loads[id(self)] = _Load(tuple(result.missing_keys), unused)
        return result

    nn.Module.load_state_dict = recording  # type: ignore[method-assign, assignment]
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _load_report(
    module: nn.Module, head: set[str], source: _Source, load: _Load | None
) -> LoadReport:
    sizes = {n: p.numel() for n, p in module.named_parameters() if n not in head}
    if not source.pretrained:
        return LoadReport(source.label, 0, sum(sizes.values()))
    state = module.state_dict()
    missing = tuple(state) if load is None else load.missing
    lost = [n for n in missing if n not in head and state[n].is_floating_point()]
    loaded = sum(sizes.values()) - sum(sizes.get(name, 0) for name in lost)
    unused = {} if load is None else load.unused
    return LoadReport(source.label, loaded, sum(sizes.values()), tuple(lost), unused)


def _check_loaded(report: LoadReport, source: _Source) -> None:
    if not source.pretrained:
        return
    statistics = [name for name in report.missing if name.endswith(("running_mean", "running_var"))]
    if report.share >= MIN_LOADED_SHARE and statistics:
        raise ModelError(
            f"{report.source} lacks BatchNorm statistics, first '{statistics[0]}'. Save the whole "
            f"state_dict(), buffers included."
        )
    num_unused = sum(report.unused.values()) if "state_dict" in source.overlay else 0
    if report.share >= MIN_LOADED_SHARE:
        if num_unused > (1 - MIN_LOADED_SHARE) * report.num_parameters:
            raise ModelError(
                f"{report.source} holds {num_unused:,} numbers that the backbone has no place for, "
                f"first '{next(iter(report.unused))}'. It belongs to a larger one; choose that."
            )
        return
    keys = list(source.overlay.get("state_dict", {}))
    found = f" The file's keys look like '{keys[0]}'." if keys else ""
    raise ModelError(
        f"Only {report.share:.1%} of the backbone's parameters came from {report.source}; missing "
        f"first '{report.missing[0]}'.{found} The weights belong to another backbone or their keys "
        f"carry a prefix: rename the keys, or choose the backbone that they belong to."
    )


def _why_not_created(
    backbone: str, source: _Source, arguments: Mapping[str, Any], error: Exception
) -> str:
    reason = _first_line(error)
    if isinstance(error, TypeError) and arguments:
        return f"'{backbone}' does not take model.kwargs {dict(arguments)}: {reason}."
    if "No pretrained weights exist" in reason or "Invalid pretrained" in reason:
        return f"{reason} Pass --weights random or a local file."
    if source.label.startswith("hub"):
        return (
            f"The weights of '{backbone}' could not be fetched: {reason}. Check the network, or "
            f"pass a local file with --weights, or --weights random."
        )
    if source.pretrained:
        return f"{source.label} does not fit '{backbone}': {reason}. Check --backbone."
    return f"'{backbone}' cannot be created: {reason}."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [repr(error)])[0]
    return text[:300].rstrip(".")


def _forget_source(module: nn.Module) -> None:
    """Drop the loaded tensors from the network's config, which timm keeps alive."""
    cfg = dict(module.pretrained_cfg)  # type: ignore[arg-type]
    cfg.pop("state_dict", None)
    cfg["num_classes"] = module.num_classes
    module.pretrained_cfg = module.default_cfg = cfg  # type: ignore[assignment]


def _spec(module: nn.Module, image_size: int | None) -> PreprocessSpec:
    found = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    channels, height, width = found["input_size"]
    _check_channels(channels)
    spec = PreprocessSpec(
        input_size=(3, height, width),
        mean=tuple(float(value) for value in found["mean"]),
        std=tuple(float(value) for value in found["std"]),
        interpolation=found["interpolation"],
        crop_pct=float(found["crop_pct"]),
        crop_mode=found["crop_mode"],
    )
    return spec if image_size is None else replace(spec, input_size=(3, image_size, image_size))
