"""Functions of ``import finetune`` that accept a data path instead of a config."""
