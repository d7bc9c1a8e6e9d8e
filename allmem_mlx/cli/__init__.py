"""The plumbing of the commands: flags, signals, progress, lines typed, results."""
