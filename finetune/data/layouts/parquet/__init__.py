"""Parquet files of images: which files they are, their columns, and their images as files."""
