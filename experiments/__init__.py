"""Programs over perl: launch (a job or a pipeline), sweep, tables, report, benchmarks.

`python -m experiments.<program>` imports this file first, before anything imports jax.
"""

import sys

from perl.config import platform

if sys.argv[0] == '-m' and not any('experiments.benchmarks' in word for word in sys.orig_argv):
  platform.tune(sys.argv[1:])
