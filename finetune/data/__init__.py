"""From files to batches: scan, audit, split, decode, augment, sample. Knows no config."""
