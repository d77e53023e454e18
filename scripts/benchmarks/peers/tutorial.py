"""PyTorch's transfer learning tutorial, with its settings and its loop.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html: SGD with lr 0.001
and momentum 0.9, lr divided by 10 every 7 epochs, batches of 4, 25 epochs, weights of the best one.
``--frozen`` is its second part: the backbone as a fixed feature extractor.
"""

import copy
import sys

import torch
import torchvision
from common import (
    install_torchvision_weights,
    is_in_torchvision,
    parse_options,
    write_predictions,
)
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    """Train and predict."""
    frozen = "--frozen" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--frozen"]
    options = parse_options()
    if not is_in_torchvision(options):
        sys.exit(f"torchvision has no {options.backbone}, which the tutorial would use")
    install_torchvision_weights(options.backbone, options.weights)
    size = options.image_size
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    train = ImageFolder(options.data / "train", transforms.Compose([*crop, *end]))
    view = [transforms.Resize(round(256 / 224 * size)), transforms.CenterCrop(size)]
    val = ImageFolder(options.data / "val", transforms.Compose([*view, *end]))
    test = ImageFolder(options.data / "test", transforms.Compose([*view, *end]))
    model = torchvision.models.get_model(options.backbone, weights="IMAGENET1K_V1")
    for parameter in model.parameters():
        parameter.requires_grad = not frozen
    model.fc = nn.Linear(model.fc.in_features, len(train.classes))
    trained = model.fc.parameters() if frozen else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion = nn.CrossEntropyLoss()
    best, best_state = 0.0, copy.deepcopy(model.state_dict())
    loader = DataLoader(train, batch_size=4, shuffle=True, num_workers=4)
    for _ in range(options.epochs or 25):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        schedule.step()
        accuracy = _compute_accuracy(model, val)
        if accuracy > best:
            best, best_state = accuracy, copy.deepcopy(model.state_dict())
        print(f"{accuracy:.4f}", flush=True)
    model.load_state_dict(best_state)
    names = [file.removeprefix(f"{options.data / 'test'}/") for file, _ in test.samples]
    predicted = _predict(model, test).tolist()
    write_predictions(options, {n: train.classes[c] for n, c in zip(names, predicted, strict=True)})


def _predict(model: nn.Module, data: ImageFolder) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        loader = DataLoader(data, batch_size=4, num_workers=4)
        return torch.cat([model(images).argmax(dim=1) for images, _ in loader])


def _compute_accuracy(model: nn.Module, data: ImageFolder) -> float:
    return float((_predict(model, data) == torch.tensor(data.targets)).float().mean())


if __name__ == "__main__":
    main()
