"""Linear probe of multi-label images: an independent logistic regression for each label."""
