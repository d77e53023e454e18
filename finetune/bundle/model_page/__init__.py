"""The README of a model: the front matter that a hub reads, tables, the data, limits and use."""
