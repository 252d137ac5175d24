"""Entry point for `python -m minmax_entropy.cli`, which launchers of several processes need."""

import sys

from minmax_entropy.cli import main

if __name__ == "__main__":
    sys.exit(main())
