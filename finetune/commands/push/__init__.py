"""Publication of a model on the Hugging Face hub."""
