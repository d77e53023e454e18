"""HTTP server around a model, with a page to try it; it knows the model by an interface alone."""
