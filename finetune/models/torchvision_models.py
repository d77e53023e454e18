"""GoogLeNet and AlexNet of torchvision as timm models, since timm does not have them."""

from typing import Any

import torchvision
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

_IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "license": "bsd-3-clause",
    "origin_url": "https://github.com/pytorch/vision",
}


class GoogLeNet(torchvision.models.GoogLeNet):  # type: ignore[misc] # torchvision is untyped
    """Inception-v1 with batch normalisation (Szegedy et al. 2014), without its auxiliary heads.

    torchvision's weights were trained on pixels scaled to [-1, 1]; that scaling is part of the
    preprocessing here, so ``transform_input`` stays off.

    Attributes:
        architecture_id: ID in the names of feature stores on disk, independent of the class name.
    """

    architecture_id = "finetune.models.zoo.GoogLeNet"

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> None:
        super().__init__(
            num_classes=num_classes, aux_logits=False, init_weights=True, dropout=drop_rate
        )
        if in_chans != 3:
            self.conv1.conv = _replace_inputs(self.conv1.conv, in_chans)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 1024

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, shape (B, 1024, H/32, W/32)."""
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        for block in (self.inception4a, self.inception4b, self.inception4c, self.inception4d):
            x = block(x)
        x = self.maxpool4(self.inception4e(x))
        features: Tensor = self.inception5b(self.inception5a(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K), or the pooled features (B, 1024) before the classifier."""
        x = self.dropout(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits (B, K) of normalised images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer; 0 classes return the pooled features."""
        del global_pool
        self.num_classes = num_classes
        self.fc = nn.Linear(1024, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that assign parameters to layer groups."""
        if coarse:
            return {"stem": r"^conv\d", "blocks": r"^inception(\d)"}
        return {"stem": r"^conv(\d)", "blocks": [(r"^inception(\d)([a-e])", None)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise ValueError if enabled: the blocks are too small to benefit."""
        if enable:
            raise ValueError("googlenet has no activation checkpointing")


class AlexNet(torchvision.models.AlexNet):  # type: ignore[misc]
    """AlexNet in one column (Krizhevsky 2014, https://arxiv.org/abs/1404.5997).

    Attributes:
        architecture_id: ID in the names of feature stores on disk, independent of the class name.
    """

    architecture_id = "finetune.models.zoo.AlexNet"

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__(num_classes=num_classes, dropout=drop_rate)
        if in_chans != 3:
            self.features[0] = _replace_inputs(self.features[0], in_chans)
        self.num_classes = num_classes
        self.num_features = 256
        self.head_hidden_size = 4096

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, shape (B, 256, H/32, W/32)."""
        features: Tensor = self.features(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K), or the features (B, 4096) before the classifier."""
        x = self.avgpool(x).flatten(1)
        layers = self.classifier[:-1] if pre_logits else self.classifier
        out: Tensor = layers(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits (B, K) of normalised images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.classifier[-1]
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer; 0 classes return the features before it."""
        del global_pool
        self.num_classes = num_classes
        self.classifier[-1] = nn.Linear(4096, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of layer groups, the same for coarse and fine groups."""
        del coarse
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise ValueError if enabled: the layers are too few to benefit."""
        if enable:
            raise ValueError("alexnet has no activation checkpointing")


def _replace_inputs(convolution: nn.Conv2d, in_chans: int) -> nn.Conv2d:
    """Return a convolution with random weights for another number of input channels."""
    return nn.Conv2d(
        in_chans,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        stride=convolution.stride,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )


def _drop_auxiliary_heads(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict without the auxiliary classifiers, used only in training from scratch."""
    del model
    return {name: value for name, value in state.items() if not name.startswith(("aux1.", "aux2."))}


# timm looks up the default weights in the module that registers a model
default_cfgs = generate_default_cfgs(
    {
        "googlenet.tv_in1k": {
            **_IMAGENET,
            "url": torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.url,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "pool_size": (7, 7),
            "first_conv": "conv1.conv",
            "classifier": "fc",
        },
        "alexnet.tv_in1k": {
            **_IMAGENET,
            "url": torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "pool_size": (6, 6),
            "first_conv": "features.0",
            "classifier": "classifier.6",
        },
    }
)


def googlenet(pretrained: bool = False, **kwargs: Any) -> GoogLeNet:
    """Build torchvision's GoogLeNet with timm's factory."""
    model: GoogLeNet = build_model_with_cfg(
        GoogLeNet,
        "googlenet",
        pretrained,
        pretrained_filter_fn=_drop_auxiliary_heads,
        **kwargs,
    )
    return model


def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """Build torchvision's AlexNet with timm's factory."""
    model: AlexNet = build_model_with_cfg(AlexNet, "alexnet", pretrained, **kwargs)
    return model


def register() -> None:
    """Register both models with timm, unless timm has a model of that name; idempotent."""
    for build_model in (googlenet, alexnet):
        if not is_model(build_model.__name__):
            register_model(build_model)
