"""`python -m experiments.launch` in a checkout: the program of perl/cli/launch.py."""
from perl import cli

if __name__ == '__main__':
  cli.run('launch')
