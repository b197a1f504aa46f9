"""Dataset in, Dataset out: the study itself. Never imports diffusers."""
