#!/usr/bin/env python3
"""Print what runs took; the same as `megatron-cpt account`, without hydra."""

from __future__ import annotations

import argparse
import sys

from megatron_cpt.errors import CptError
from megatron_cpt.meter.account_command import DESCRIPTION, EXAMPLES, add_arguments, run_account


def main(arguments: list[str] | None = None) -> int:
    """Print the account and return the exit code: 0, or that of the error."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        run_account(parser.parse_args(arguments))
    except CptError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
