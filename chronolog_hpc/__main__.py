"""`python -m chronolog_hpc` is the command `chronolog`."""

import sys

from chronolog_hpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
