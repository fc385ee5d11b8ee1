"""`python -m gemminer` is the command line."""

from gemminer.cli import entry

if __name__ == "__main__":
    entry()
