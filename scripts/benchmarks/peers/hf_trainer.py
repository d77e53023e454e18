"""Hugging Face's Trainer around a timm network, with the settings of its example script.

https://github.com/huggingface/transformers/tree/main/examples/pytorch/image-classification:
AdamW of 2e-5, batches of 8, 5 epochs, the best epoch kept; RandomResizedCrop and flip.
"""

import tempfile

import numpy as np
import timm
import torch
from common import load_state_dict, parse_options, write_predictions
from torchvision import transforms
from torchvision.datasets import ImageFolder
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, Trainer
from transformers import TrainingArguments as Arguments


class Rows(torch.utils.data.Dataset):
    """Images as the Trainer wants them."""

    def __init__(self, data: ImageFolder) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict:
        pixels, label = self.data[row]
        return {"pixel_values": pixels, "labels": label}


def main() -> None:
    """Train and predict."""
    options = parse_options()
    size = options.image_size
    cfg = {**timm.get_pretrained_cfg(options.backbone).to_dict(), **options.cfg}
    end = [transforms.ToTensor(), transforms.Normalize(cfg["mean"], cfg["std"])]
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    train = ImageFolder(options.data / "train", transforms.Compose([*crop, *end]))
    view = [transforms.Resize(size), transforms.CenterCrop(size)]
    val = ImageFolder(options.data / "val", transforms.Compose([*view, *end]))
    test = ImageFolder(options.data / "test", transforms.Compose([*view, *end]))
    names = dict(enumerate(train.classes))
    config = TimmWrapperConfig(
        architecture=options.backbone,
        id2label=names,
        label2id={n: i for i, n in names.items()},
        model_args=options.kwargs,
    )
    model = TimmWrapperForImageClassification(config)
    state = load_state_dict(options.weights)
    head = model.timm_model.pretrained_cfg["classifier"]
    state = {name: value for name, value in state.items() if not name.startswith(f"{head}.")}
    left = model.timm_model.load_state_dict(state, strict=False)
    expected = (f"{head}.", "num_batches_tracked")
    assert all(any(part in name for part in expected) for name in left.missing_keys), left
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            Arguments(
                folder,
                learning_rate=2e-5,
                num_train_epochs=options.epochs or 5,
                per_device_train_batch_size=8,
                per_device_eval_batch_size=8,
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=3,
                load_best_model_at_end=True,
                seed=options.seed,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Rows(train),
            eval_dataset=Rows(val),
        )
        trainer.train()
        chosen = np.argmax(trainer.predict(Rows(test)).predictions, axis=1)
    files = [file.removeprefix(f"{options.data / 'test'}/") for file, _ in test.samples]
    write_predictions(options, {file: names[int(c)] for file, c in zip(files, chosen, strict=True)})


if __name__ == "__main__":
    main()
