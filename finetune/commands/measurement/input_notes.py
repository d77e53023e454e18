"""Notes on what a run does not take from its images or its network, as its plan should say."""

from finetune.audit.audit import Audit
from finetune.builders import Training
from finetune.config.sections.augment import JITTERED_CHANNELS
from finetune.data.transforms.presets import AUGMENTATIONS
from finetune.types import Reporter
from finetune.units import format_count


def note_input(training: Training, audit: Audit, reporter: Reporter) -> None:
    """Note defaults of a network of one's own, augmentation left out, and bits that are lost."""
    config, network = training.config, training.network
    cfg, spec = config.model.pretrained_cfg, network.spec
    missing = [key for key in network.missing_keys if key not in cfg]
    if missing:
        values = ", ".join(
            f"{key}={_format(getattr(spec, key))}" for key in missing if key != "input_size"
        )
        size = f"images of {spec.input_size[-1]} px" if "input_size" in missing else ""
        given = "; ".join(part for part in (size, values) if part)
        reporter.note(
            f"{config.model.backbone} states no {', '.join(missing)}; taken: {given}. State them "
            f"in network.pretrained_cfg, or set model.pretrained_cfg."
        )
    preset = AUGMENTATIONS.get(config.augment.name)
    if preset is not None and preset.jitter and config.data.channels not in JITTERED_CHANNELS:
        reporter.note(
            f"augment.name={config.augment.name} without color jitter: it is defined for RGB and "
            f"grey, and images have {format_count(config.data.channels, 'channel')}."
        )
    bits = audit.bits
    if bits is not None and bits.num_bits > 8 and config.data.bit_depth == 8:
        reporter.note(
            f"{format_count(bits.num_images, 'image')} of {bits.num_bits} bits are read with 8. "
            f"To keep them all, set data.bit_depth=16."
        )


def _format(value: object) -> str:
    """Return a value as it is written in a config; numbers that are all alike once."""
    if isinstance(value, tuple):
        values = dict.fromkeys(value) if len(set(value)) == 1 else value
        return ",".join(f"{number:g}" for number in values)
    return str(value)
