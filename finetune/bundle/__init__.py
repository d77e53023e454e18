"""The model bundle: weights, model card and what timm reads."""
