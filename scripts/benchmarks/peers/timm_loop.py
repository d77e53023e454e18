"""timm: a loop of the model, transforms, optimizer and schedule from its documentation.

https://huggingface.co/docs/timm/quickstart creates a model for fine-tuning and leaves the loop to
the reader, or to its train.py, from which the parts are taken: create_loader with its defaults,
create_optimizer_v2 (AdamW), create_scheduler_v2 (cosine), label smoothing 0.1. The 5 epochs of
batches of 32 at 5e-4 are our choice, as timm recommends none for fine-tuning.
"""

import timm
import torch
from common import load_state_dict, parse_options, write_predictions
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2


def main() -> None:
    """Train and predict."""
    options = parse_options()
    train_data = create_dataset("", root=str(options.data / "train"))
    index_of = train_data.reader.class_to_idx
    classes = sorted(index_of, key=lambda name: index_of[name])
    model = timm.create_model(
        options.backbone, pretrained_cfg_overlay=options.cfg, **options.kwargs
    )
    state = load_state_dict(options.weights)
    left = model.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys), left
    assert not left.unexpected_keys, left
    model.reset_classifier(len(classes))
    config = resolve_model_data_config(model)
    common = {
        "input_size": (3, options.image_size, options.image_size),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config["interpolation"],
        "batch_size": 32,
        "use_prefetcher": False,
    }
    train = create_loader(
        train_data,
        is_training=True,
        color_jitter=0.4,
        **common,
    )
    test_data = create_dataset("", root=str(options.data / "test"))
    test = create_loader(test_data, is_training=False, crop_pct=config["crop_pct"], **common)
    epochs = options.epochs or 5
    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-5
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        schedule.step(epoch + 1)
    model.eval()
    with torch.no_grad():
        chosen = torch.cat([model(images).argmax(dim=1) for images, _ in test]).tolist()
    files = test_data.filenames(absolute=False)
    write_predictions(options, {file: classes[c] for file, c in zip(files, chosen, strict=True)})


if __name__ == "__main__":
    main()
