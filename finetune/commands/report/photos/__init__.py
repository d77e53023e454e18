"""Pictures of a report, made from the image files and the network of a run."""
