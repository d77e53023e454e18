"""From files to batches: scan, audit, split, decode, augment, sample. Knows no config."""

import os

# Without this albumentations asks the package index for its newest release, at every import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
