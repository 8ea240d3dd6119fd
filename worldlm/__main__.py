"""`python -m worldlm`."""

import sys

from worldlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
