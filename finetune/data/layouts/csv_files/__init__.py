"""CSVs of images: their records, their labelled images, and images that they hold in base64."""
