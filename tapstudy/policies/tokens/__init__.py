"""Run some tokens of the image, and predict the others."""
