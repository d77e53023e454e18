"""Images with any number of labels: their targets, and splits that keep the labels' fractions."""
