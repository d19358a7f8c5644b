"""How a program ends: with a line for a mistake, and quietly where it is stopped."""

import signal
import sys
from collections.abc import Callable, Sequence

from fedlightning import FedLightningError


def call(name: str, main: Callable[[Sequence[str]], object]) -> None:
    """Call a program's `main` with its command line.

    Args:
        name: of the program, before what is said.
        main: what it does.

    Raises:
        SystemExit: with status 2 after a mistake of the user's, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        main(sys.argv[1:])
    except FedLightningError as error:
        print(f"{name}: error: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print(f"{name}: stopped; the same command goes on.", file=sys.stderr)
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None
