"""Who takes part in which suite, with what command; and what we aim at against them."""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence

from experiments.bench import work

OURS = 'perl'


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A module of this package that measures one case of its suites in a process of its own."""

  module: str
  suites: tuple[str, ...]
  variant: str = ''
  needs: str = ''  # the package, where it is optional


ALL = tuple(work.SUITES)
CONTESTANTS = {
  OURS: Contestant('ours', ALL),
  'perl_full': Contestant('ours', ('rm', 'sft', 'rl'), 'full'),
  'perl_remat': Contestant('ours', ('rm', 'sft', 'rl'), 'remat'),
  'perl_stacks': Contestant('ours', ('decode', 'rl'), 'stacks'),
  'peft': Contestant('peer_peft', ALL, '', 'peft'),
  'peft_merged': Contestant('peer_peft', ('decode',), 'merged', 'peft'),
  'peft_compiled': Contestant('peer_peft', ALL, 'compiled', 'peft'),
  'trl': Contestant('peer_trl', ('rm', 'sft'), '', 'trl'),
  'trl_rloo': Contestant('peer_trl', ('rl',), 'rloo', 'trl'),
  'trl_grpo': Contestant('peer_trl', ('rl',), 'grpo', 'trl'),
  'tunix': Contestant('peer_tunix', ALL),  # where --tunix names its Python
}
"""By the names that --contestants takes."""

CPU = {
  'rm': (OURS, 'peft', 'trl', 'tunix'), 'sft': (OURS, 'peft', 'trl', 'tunix'),
  'decode': (OURS, 'peft', 'peft_merged', 'tunix'), 'rl': (OURS, 'trl_rloo', 'trl_grpo', 'tunix'),
}
GPU = {
  'rm': (OURS, 'peft', 'perl_full', 'peft_compiled'),
  'sft': (OURS, 'peft', 'perl_full', 'peft_compiled'),
  'decode': (OURS, 'peft', 'peft_merged', 'peft_compiled'),
  'rl': (OURS, 'peft', 'perl_full', 'peft_compiled', 'trl_rloo'),
}
"""Suite -> who takes part unless --contestants says; the most telling ones first."""

AIMS = {
  ('rm', 'tiny'): {'peft': 1.1, 'tunix': 2.0},
  ('rm', 'medium'): {'peft': 1.1, 'tunix': 2.0},
  ('decode', 'tiny'): {'peft': 2.5, 'tunix': 1.8},
  ('decode', 'medium'): {'peft': 1.6, 'tunix': 1.5},
  ('rl', 'tiny'): {'trl_rloo': 1.8, 'trl_grpo': 1.8},
  ('rl', 'medium'): {'trl_rloo': 1.5, 'trl_grpo': 1.5, 'tunix': 2.0},
  ('rm', 'smollm2'): {'peft': 1.1},
  ('sft', 'smollm2'): {'peft': 1.1},
  ('decode', 'smollm2'): {'peft': 1.3},
}
"""(suite, size) -> the least ratio of their seconds to ours that we want."""

MEMORY_AIMS = {
  ('rl', 'medium'): {'tunix': 3.0},
  ('rl', 'smollm2'): {'trl_rloo': 1.67, 'trl_grpo': 1.67},
}
"""(suite, size) -> the least ratio of their peak memory to ours that we want."""


def chosen(suite: str, wanted: Sequence[str], preset: str, tunix: str) -> list[str]:
  """The contestants of a suite that this machine has, ours first.

  Args:
    suite: one of work.SUITES.
    wanted: names; none for those of the preset.
    preset: 'gpu' or ''.
    tunix: the Python of Tunix's environment, '' for none.
  """
  names = [n for n in wanted if suite in CONTESTANTS[n].suites] if wanted else list(
    (GPU if preset == 'gpu' else CPU)[suite])
  there = lambda name: bool(tunix) if name == 'tunix' else (
    not CONTESTANTS[name].needs or importlib.util.find_spec(CONTESTANTS[name].needs) is not None)
  return sorted((n for n in dict.fromkeys(names) if there(n)), key=lambda n: n != OURS)


def command(name: str, tunix: str, options: Sequence[str]) -> list[str]:
  """The command line of a contestant."""
  contestant = CONTESTANTS[name]
  variant = [f'--variant={contestant.variant}'] if contestant.variant else []
  return [tunix if name == 'tunix' else sys.executable, '-m',
          f'experiments.bench.{contestant.module}', *options, *variant]
