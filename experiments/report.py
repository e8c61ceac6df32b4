"""`python -m experiments.report` in a checkout: the program of perl/cli/report.py."""
import sys

from perl import cli

if __name__ == '__main__':
  sys.exit(cli.main(['report', *sys.argv[1:]]))
