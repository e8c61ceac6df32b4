"""`python -m perl.cli <command>`."""

from perl import cli

if __name__ == '__main__':
  cli.run()
