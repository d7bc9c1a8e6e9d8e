"""Speed, memory and cost of a model, and what a long reading does to it."""
