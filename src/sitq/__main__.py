"""``python -m sitq``: the command line."""

from sitq.cli import main

if __name__ == "__main__":
    main()
