"""Limits of requests, and how requests are received or rejected."""
