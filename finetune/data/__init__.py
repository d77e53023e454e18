"""Input pipeline from files to batches: scan, split, decode, cache, augment and sample.

Imports no config: the builders translate config sections into arguments.
"""

import os

# Otherwise albumentations queries the package index for its newest release at every import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
