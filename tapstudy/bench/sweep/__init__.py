"""Many settings on the same images."""
