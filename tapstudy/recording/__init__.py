"""Record trajectories into labelled datasets."""
