"""Distillation of a memory: ``mlx`` and ``torch`` are back ends; recipe, documents, the
start of training and its loop are shared."""
