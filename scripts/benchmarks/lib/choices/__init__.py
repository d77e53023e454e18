"""Parts of named_choices.py: heads on frozen features, and whole fits."""
