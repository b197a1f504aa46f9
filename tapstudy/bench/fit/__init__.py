"""What is fitted and chosen on held-out images."""
