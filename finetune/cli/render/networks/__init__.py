"""Tables of layers, stages and compared backbones."""
