"""What is measured of a model while it runs: speed, memory, and what a long reading
does to it."""
