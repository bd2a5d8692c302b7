"""`python -m fastmpi` is the command `fastmpi`; torchrun and worker processes start here too."""

import sys

from fastmpi.cli import main

if __name__ == "__main__":
    sys.exit(main())
