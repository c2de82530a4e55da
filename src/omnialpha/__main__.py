"""`python -m omnialpha` is the command `omnialpha`."""

from omnialpha.apps.cli import main

if __name__ == "__main__":
    main()
