"""`python -m cmimtl` is the command `cmimtl`."""

import sys

from cmimtl.cli import main

# A child that multiprocessing starts anew imports this module again, under another name.
if __name__ == "__main__":
    sys.exit(main())
