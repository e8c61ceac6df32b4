"""`python -m perl.cli <command>`."""

import sys

from perl import cli

if __name__ == '__main__':
  sys.exit(cli.main())
