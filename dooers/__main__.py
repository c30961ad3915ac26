"""`python -m dooers`: the `dooers` command. Not an entry point of its own: all of it is in `cli.py`."""

from dooers.cli import main

if __name__ == "__main__":
    main()
