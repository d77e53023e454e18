"""The huggingface format: a folder that transformers loads without code of finetune."""
