"""Exports of models to formats of other libraries, each verified against the bundle's model."""
