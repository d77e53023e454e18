"""Layouts of labelled images: class folders, split folders and CSVs, and the names in them."""
