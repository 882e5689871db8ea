"""`python -m app` runs the same commands as `seg-loss`."""

from .cli import main

if __name__ == "__main__":
    main()
