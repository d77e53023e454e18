"""Commands that apply trained models."""
