"""Starts the command, as ``python -m allmem_mlx.convert`` and, in a checkout, as
``python -m convert``."""

from allmem_mlx.convert.command import main

if __name__ == "__main__":
    main()
