"""`python -m minmax_entropy.cli`, as launchers of several processes need it."""

import sys

from minmax_entropy.cli import main

if __name__ == "__main__":
    sys.exit(main())
