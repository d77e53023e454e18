"""A model behind an HTTP server."""
