"""The hypotheses about TAP: what each says, what is measured for it, and the verdict."""
