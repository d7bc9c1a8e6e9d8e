"""Likelihood by position, recall by generation and public long-context suites, always
beside the same controls."""
