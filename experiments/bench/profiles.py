"""Where the time of a traced step goes: the operations of a jax.profiler trace, by their own time.

    python -m experiments.bench --suite=rm,rl --size=tiny --profile=/tmp/trace
    python -m experiments.bench.profiles /tmp/trace/rm_tiny

The first command writes the trace and prints this table; the second prints it again.
"""

import collections
import gzip
import json
import pathlib

from experiments.bench import work

LOOK = """
Two steps are in it. To look: open ui.perfetto.dev and drop {trace} into it, or, with TensorBoard
and the package xprof: tensorboard --logdir={folder} and its tab Profile.
"""


def find(folder: pathlib.Path) -> pathlib.Path:
  """The newest trace that jax.profiler left in a folder.

  Raises:
    FileNotFoundError: there is none.
  """
  traces = sorted(pathlib.Path(folder).rglob('*.trace.json.gz'), key=lambda f: f.stat().st_mtime)
  if not traces:
    raise FileNotFoundError(
      f'expected a *.trace.json.gz in {folder}, found none; write one with '
      'python -m experiments.bench --profile=FOLDER')
  return traces[-1]


def own_seconds(events: list[dict]) -> dict[str, tuple[float, int]]:
  """{operation: (seconds less what runs inside it, calls)} over all threads, the longest first.

  Args:
    events: of the Trace Event Format; 'X' ones count, with `ts` and `dur` in microseconds. Names
      lose the number at their end, so that the copies of an operation add up. Frames of Python
      ('$file:line function') and marks of an end ('end: dot.1') are left out.
  """
  threads: dict[tuple, list[dict]] = collections.defaultdict(list)
  for event in events:
    if event.get('ph') == 'X' and not event['name'].startswith(('$', 'end: ')):
      threads[event['pid'], event['tid']].append(event)
  total: dict[str, float] = collections.Counter()
  calls: dict[str, int] = collections.Counter()
  for thread in threads.values():
    open_ones: list[tuple[float, str]] = []  # (end, name), the innermost last
    for event in sorted(thread, key=lambda e: (e['ts'], -e['dur'])):
      while open_ones and open_ones[-1][0] <= event['ts']:
        open_ones.pop()
      stem, _, number = event['name'].rpartition('.')
      name = stem if stem and number.isdigit() else event['name']
      total[name] += event['dur']
      calls[name] += 1
      if open_ones:
        total[open_ones[-1][1]] -= event['dur']
      open_ones.append((event['ts'] + event['dur'], name))
  order = sorted(total, key=lambda n: -total[n])
  return {name: (total[name] / 1e6, calls[name]) for name in order}


def operations(folder: str | pathlib.Path) -> dict[str, tuple[float, int]]:
  """`own_seconds` of the newest trace in a folder."""
  with gzip.open(find(pathlib.Path(folder)), 'rt') as stream:
    return own_seconds(json.load(stream)['traceEvents'])


def describe(
  folder: str | pathlib.Path, seconds_of: dict[str, tuple[float, int]] | None = None, most: int = 25
) -> str:
  """The longest operations in Markdown, and where to look at the whole; also kept in README.md.

  Args:
    folder: of a trace.
    seconds_of: its `operations`, if they are read already.
    most: operations.
  """
  trace, seconds_of = find(pathlib.Path(folder)), seconds_of or operations(folder)
  lines = ['| operation | own time, ms, all threads | calls |', '|:--|--:|--:|']
  lines += [f'| {name[:90]} | {seconds * 1e3:.2f} | {count} |'
            for name, (seconds, count) in list(seconds_of.items())[:most]]
  text = '\n'.join([f'{folder}:', '', *lines, LOOK.format(trace=trace, folder=folder)])
  (pathlib.Path(folder) / 'README.md').write_text(text)
  return text


def main() -> None:
  """Prints the table of a folder."""
  parser = work.parser(__doc__)
  parser.add_argument('folder')
  parser.add_argument('--most', type=int, default=25, help='operations')
  args = parser.parse_args()
  print(describe(args.folder, most=args.most))


if __name__ == '__main__':
  main()
