"""Public long-context suites: their files, prompts and metrics, as published."""
