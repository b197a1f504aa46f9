"""Speed, FLOPs, and how far accelerated images are from the reference."""
