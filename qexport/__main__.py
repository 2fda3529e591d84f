"""`python -m qexport`, and the installed command: what can be interrupted from its first moment."""

import sys

from qexport.system.signals import run_process
from qexport.system.streams import open_streams


def main() -> int:
    """Run the command line of this process and return its exit code."""
    open_streams()
    return run_process(_command)


def _command() -> int:
    from qexport.cli.app import main as command  # 0.2 seconds, which Ctrl-C does not wait for

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
