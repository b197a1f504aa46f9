"""Leave out some blocks, or some attention and feed-forward layers, at some steps."""
