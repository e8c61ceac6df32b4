"""`python -m experiments.judge` in a checkout: the program of perl/cli/judge.py."""
from perl import cli

if __name__ == '__main__':
  cli.run('judge')
