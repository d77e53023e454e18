"""Files with smaller numbers: int8 and fp16 versions of an exported file, and what they change."""
