"""Images that a model is evaluated on, and the result."""
