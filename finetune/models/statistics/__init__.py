"""Statistics of the layers of a network on a sample of images."""
