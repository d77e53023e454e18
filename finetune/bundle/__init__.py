"""Model bundle: weights, model card and the files that timm reads."""
