"""Spoilt inputs by the thousand: each is accepted or refused as the docs say, within bounds.

    python -m experiments.fuzz --inputs=100000 --json=experiments/results/fuzz.json
    python -m experiments.fuzz --kinds=config,rows --inputs=2000
    python -m experiments.fuzz --kinds=config --number=1234 --keep=/tmp/input

Kinds are the files of experiments/fuzz/kinds; each says what share of the inputs it gets. Input
number i of a kind follows from the seed, the kind and i alone, so that a finding is repeated by its
number; --keep writes its files. An input is spoilt from a valid one: a wrong type, a huge or absent
value, NaN, a key twice, lists in lists, cut, flipped or foreign bytes, text that is no Unicode.

Findings, of which there shall be none: an error of another class than ValueError or OSError, or one
that does not say what was expected and found in which file (foreign); a tensor that is accepted
although nobody wrote it (wrong); more processor time than it may take (hang); the end of the
process (died). The exit code is 1 where there is one.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from experiments.fuzz import _judge as judges
from experiments.fuzz._child import KINDS
from perl import choices


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.fuzz', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  known = choices.names(KINDS)
  parser.add_argument('--inputs', type=int, default=1000, help='of all kinds together')
  parser.add_argument('--kinds', default=','.join(known), help=f'of {", ".join(known)}')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--seconds', type=float, default=10.0, help='of processor time, an input')
  parser.add_argument('--mebibytes', type=int, default=2048, help='of memory, an input')
  parser.add_argument('--json', default='', help='write the result to this file')
  parser.add_argument('--number', type=int, help='one input alone, of one kind')
  parser.add_argument('--keep', default='', help='with --number: write its files here')
  options = parser.parse_args(argv)
  options.kinds = options.kinds.split(',')
  if unknown := sorted(set(options.kinds) - set(known)):
    parser.error(f'expected --kinds of {", ".join(known)}, found {unknown[0]}')
  return options


def shares(kinds: Sequence[str], inputs: int) -> dict[str, int]:
  """{kind: how many inputs}, at least one each, by SHARE."""
  weights = {name: choices.find(KINDS, name).SHARE for name in kinds}
  whole = sum(weights.values())
  return {name: max(1, -(-inputs * weight // whole)) for name, weight in weights.items()}


def table(result: dict) -> str:
  """The counts by kind, then the findings."""
  lines = [f'{"kind":<12} {"inputs":>8} {"accepted":>9} {"refused":>8} {"findings":>9} {"s":>8}']
  for name, row in result['kinds'].items():
    found = sum(f['count'] for f in row['findings'])
    lines.append(f'{name:<12} {row["inputs"]:>8,} {row["accepted"]:>9,} {row["refused"]:>8,} '
                 f'{found:>9,} {row["seconds"]:>8.1f}')
  lines += [f'{name} {f["number"]} (and {f["count"] - 1} more): {f["verdict"]} {f["error"]} '
            f'{f["place"]}: {f["text"][:160]!r}'
            for name, row in result['kinds'].items() for f in row['findings']]
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """The program; returns the exit code."""
  options = arguments(argv)
  bounds = judges.Bounds(options.seconds, options.mebibytes)
  if options.number is not None:
    (kind,) = options.kinds
    if options.keep:
      print(judges.spoilt(kind, options.seed, options.number, pathlib.Path(options.keep)))
    (verdict,) = judges.verdicts(kind, options.seed, options.number, 1, bounds)
    print(verdict)
    return int(verdict['verdict'] not in judges.FINE)
  from perl.train import metrics, provenance

  result = {
    'command': f'python -m experiments.fuzz --inputs={options.inputs} --seed={options.seed}',
    'settings': vars(options), **provenance.record(), 'kinds': {}}
  for kind, count in shares(options.kinds, options.inputs).items():
    result['kinds'][kind] = judges.tally(kind, options.seed, count, bounds)
    if options.json:
      metrics.write_json(options.json, result)
  print(table(result))
  return int(any(row['findings'] for row in result['kinds'].values()))


if __name__ == '__main__':
  sys.exit(main())
