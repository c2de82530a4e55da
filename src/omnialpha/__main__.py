"""`python -m omnialpha` is the command `omnialpha`."""

import sys


def main() -> None:
    """The command line; a Ctrl-C that comes while it is still being read ends like any other."""
    try:
        from omnialpha.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("\nstopped, nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
