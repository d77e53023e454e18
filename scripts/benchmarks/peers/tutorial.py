"""The PyTorch transfer tutorial's fine-tuning, its settings and its loop.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html: SGD of 0.001 and
momentum 0.9, a tenth of it every 7 epochs, batches of 4, 25 epochs, the best epoch's weights.
``--frozen`` is its second half: the backbone as a fixed feature extractor.
"""

import copy
import sys

import torch
import torchvision
from common import leave, offer_to_torchvision, options
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    """Train and predict."""
    frozen = "--frozen" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--frozen"]
    found = options()
    offer_to_torchvision(found.backbone, found.weights)
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    train = ImageFolder(found.data / "train", transforms.Compose([*crop, *end]))
    view = [transforms.Resize(256), transforms.CenterCrop(224)]
    val = ImageFolder(found.data / "val", transforms.Compose([*view, *end]))
    model = torchvision.models.get_model(found.backbone, weights="IMAGENET1K_V1")
    for parameter in model.parameters():
        parameter.requires_grad = not frozen
    model.fc = nn.Linear(model.fc.in_features, len(train.classes))
    trained = model.fc.parameters() if frozen else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion = nn.CrossEntropyLoss()
    best, best_state = 0.0, copy.deepcopy(model.state_dict())
    loader = DataLoader(train, batch_size=4, shuffle=True, num_workers=4)
    for _ in range(found.epochs or 25):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        schedule.step()
        share = _share_right(model, val)
        if share > best:
            best, best_state = share, copy.deepcopy(model.state_dict())
        print(f"{share:.4f}", flush=True)
    model.load_state_dict(best_state)
    names = [file.removeprefix(f"{found.data / 'val'}/") for file, _ in val.samples]
    chosen = _chosen(model, val).tolist()
    leave(found, {n: train.classes[c] for n, c in zip(names, chosen, strict=True)})


def _chosen(model: nn.Module, data: ImageFolder) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        loader = DataLoader(data, batch_size=4, num_workers=4)
        return torch.cat([model(images).argmax(dim=1) for images, _ in loader])


def _share_right(model: nn.Module, data: ImageFolder) -> float:
    return float((_chosen(model, data) == torch.tensor(data.targets)).float().mean())


if __name__ == "__main__":
    main()
