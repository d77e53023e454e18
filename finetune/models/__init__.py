"""timm networks: creation, pretrained weights, layer groups, freezing and the linear head."""
