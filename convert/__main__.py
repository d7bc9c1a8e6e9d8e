"""Runs ``allmem_mlx convert``, in a checkout as ``python -m convert`` too."""

from allmem_mlx.convert.command import main

if __name__ == "__main__":
    main()
