"""`python -m app` is `seg-loss`; the commands are in `app.cli`."""

from .cli import main

if __name__ == "__main__":
    main()
