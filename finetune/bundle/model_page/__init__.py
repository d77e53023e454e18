"""The README of a model: the head that a hub reads, tables, the data, limits and use."""
