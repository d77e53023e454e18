"""Saliency maps, each tested by deleting what it marks."""
