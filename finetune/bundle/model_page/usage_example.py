"""Part of a README that shows how to use the model with finetune and with Python."""

FOLDER = "THIS_FOLDER"
"""Folder of the model in the examples."""

_DOWNLOAD = """```bash
hf download {repository} --local-dir THIS_FOLDER
```

"""

_TIMM_EXAMPLE = """Use the model with
`finetune predict THIS_FOLDER images/`, or with timm alone:

```python
{registration}import timm

model = timm.create_model("{address}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
classes = model.pretrained_cfg["label_names"]
# probabilities: (model(transform(image)[None]){adjustment}).{activation}
```
"""

_CHANNELS_EXAMPLE = """Use the model with
`finetune predict THIS_FOLDER images/`, or with timm alone. Each of the {num_channels} channels is
resized by itself, as a grey image of {bits} bits in [0, 255]:

```python
{registration}import timm
import torch

model = timm.create_model("{address}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
size = (1, *config.pop("input_size")[1:])
mean, std = (torch.tensor(config.pop(key))[:, None, None] for key in ("mean", "std"))
resize = timm.data.create_transform(size, **config, normalize=False)
classes = model.pretrained_cfg["label_names"]
# channels: {num_channels} images of PIL in mode {mode}
# x = torch.cat([torch.as_tensor(resize(channel)) for channel in channels]) / 255
# probabilities: (model(((x - mean) / std)[None]){adjustment}).{activation}
```
"""

_OWN_NETWORK_EXAMPLE = """The network is code of your own, `{backbone}`, which timm does not know.
Use the model with `finetune predict THIS_FOLDER images/`, from a folder in which Python can import
the module, or with Python:

```python
import finetune

result = finetune.predict("THIS_FOLDER", "images/")
```

The module is not part of this folder, and is not imported from it: keep it with the model.
"""


_OWN_HEAD_EXAMPLE = """The classifier has hidden layers, which timm's format does not know. Use the
model with `finetune predict THIS_FOLDER images/`, or with Python:

```python
import finetune

result = finetune.predict("THIS_FOLDER", "images/")
```
"""


def render_usage(
    backbone: str,
    *,
    is_import_path: bool,
    num_channels: int,
    bit_depth: int,
    adjustment: str,
    is_multi_label: bool = False,
    has_own_head: bool = False,
    repository: str | None = None,
) -> str:
    """Return the paragraphs and the example in Markdown.

    Args:
        backbone: Backbone of the model.
        is_import_path: Whether it is a network of one's own.
        num_channels: Channels of the images.
        bit_depth: Bits of a channel, 8 or 16.
        adjustment: What is done to the logits before the softmax, such as " / 1.5".
        is_multi_label: Whether each class has a probability of its own.
        has_own_head: Whether the classifier has hidden layers.
        repository: Repository on the hub, as user/name; None for a folder.
    """
    download = render_download(repository)
    if is_import_path:
        return download + _OWN_NETWORK_EXAMPLE.format(backbone=backbone)
    if has_own_head:
        return download + _OWN_HEAD_EXAMPLE
    address = f"local-dir:{FOLDER}" if repository is None else f"hf-hub:{repository}"
    activation = "sigmoid()" if is_multi_label else "softmax(1)"
    is_torchvision = backbone.partition(".")[0] in ("googlenet", "alexnet")
    registration = (
        f"import finetune.timm_models  # registers {backbone} with timm\n" if is_torchvision else ""
    )
    if num_channels == 3 and bit_depth == 8:
        return download + _TIMM_EXAMPLE.format(
            address=address,
            registration=registration,
            adjustment=adjustment,
            activation=activation,
        )
    return download + _CHANNELS_EXAMPLE.format(
        address=address,
        num_channels=num_channels,
        bits=bit_depth,
        mode="L" if bit_depth == 8 else "F, divided by 257",
        registration=registration,
        adjustment=adjustment,
        activation=activation,
    )


def render_download(repository: str | None) -> str:
    """Return the command that downloads a model of the hub; "" for a folder."""
    return "" if repository is None else _DOWNLOAD.format(repository=repository)
