"""The runs that decide what is claimed of TAP."""
