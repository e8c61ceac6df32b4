"""`python -m experiments.convert` in a checkout: the program of perl/cli/convert.py."""
from perl import cli

if __name__ == '__main__':
  cli.run('convert')
