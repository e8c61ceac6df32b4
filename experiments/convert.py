"""`python -m experiments.convert` in a checkout: the program of perl/cli/convert.py."""
import sys

from perl import cli

if __name__ == '__main__':
  sys.exit(cli.main(['convert', *sys.argv[1:]]))
