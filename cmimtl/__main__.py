"""`python -m cmimtl` is the command `cmimtl`."""

import sys

from cmimtl.cli import main

sys.exit(main())
