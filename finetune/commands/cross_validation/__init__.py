"""Cross-validation of the fit verb: its folds and the model that follows from them."""
