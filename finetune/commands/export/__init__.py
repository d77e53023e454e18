"""Export of models to files of other libraries, verified against the evaluated model."""
