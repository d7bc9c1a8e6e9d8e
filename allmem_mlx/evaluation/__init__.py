"""What ``python -m allmem_mlx.evaluate`` measures: likelihood by position, recall by
generation and public long-context suites, always beside the same controls."""
