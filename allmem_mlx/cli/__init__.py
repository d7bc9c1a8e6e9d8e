"""The shared parts of the commands: flags, checks, signals, input and output."""
