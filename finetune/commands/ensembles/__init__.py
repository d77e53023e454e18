"""Several models as one: loading, weights fitted on validation images, and averaged weights."""
