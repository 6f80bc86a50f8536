"""`python -m rewardbench`."""

import sys

from rewardbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
