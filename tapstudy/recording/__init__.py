"""From trajectories to labelled datasets."""
