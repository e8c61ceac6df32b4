"""`python -m experiments.launch` in a checkout: the program of perl/cli/launch.py."""
import sys

from perl import cli

if __name__ == '__main__':
  sys.exit(cli.main(['launch', *sys.argv[1:]]))
