"""`python -m experiments.report` in a checkout: the program of perl/cli/report.py."""
from perl import cli

if __name__ == '__main__':
  cli.run('report')
