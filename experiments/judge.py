"""`python -m experiments.judge` in a checkout: the program of perl/cli/judge.py."""
import sys

from perl import cli

if __name__ == '__main__':
  sys.exit(cli.main(['judge', *sys.argv[1:]]))
