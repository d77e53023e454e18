"""Models in other people's formats, each compared with the model that was measured."""
