"""`python -m experiments.forecast` in a checkout: the program of perl/cli/forecast.py."""
import sys

from perl import cli

if __name__ == '__main__':
  sys.exit(cli.main(['forecast', *sys.argv[1:]]))
