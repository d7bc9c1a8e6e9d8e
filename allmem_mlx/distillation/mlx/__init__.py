"""The MLX back end: trains a converted model's memory; the result is an adapter."""
