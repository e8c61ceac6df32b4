"""`python -m experiments.forecast` in a checkout: the program of perl/cli/forecast.py."""
from perl import cli

if __name__ == '__main__':
  cli.run('forecast')
