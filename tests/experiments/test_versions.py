"""Two versions of the code, paired by experiment and seed."""

import json

import pytest

from experiments.studies import __main__ as program
from experiments.studies import versions


def save(folder, gold, commit):
  (folder / 'evaluate').mkdir(parents=True)
  (folder / 'evaluate' / 'summary.json').write_text(json.dumps(
    {'gold_reward': gold, 'commit': commit}))
  (folder / 'summary.json').write_text('{}')


def test_versions_are_paired_by_seed(tmp_path, capsys):
  for seed, (old, new) in enumerate([(0.5, 0.6), (0.7, 0.8), (0.2, 0.3)]):
    save(tmp_path / 'old' / f'demo{seed}', old, 'aaa')
    save(tmp_path / 'new' / f'demo{seed}', new, 'bbb')
  save(tmp_path / 'new' / 'demo7', 9.0, 'bbb')  # the other version has it not
  file = tmp_path / 'versions.json'
  assert program.main(['versions', f'--before={tmp_path / "old"}', f'--after={tmp_path / "new"}',
                       f'--json={file}']) == 0
  shown = capsys.readouterr().out
  assert '| demo | gold_reward | 0.500 0.700 0.200 | 0.600 0.800 0.300 | +0.100 ± 0.000 |' in shown
  assert 'Before is commit aaa, after bbb.' in shown and '9.0' not in shown
  assert versions.table(json.loads(file.read_text()))[1][0][-1] == 'rises'


@pytest.mark.parametrize('flags', [[], ['--before={0}', '--after={0}']])
def test_what_cannot_be_paired_is_said(flags, tmp_path, capsys):
  assert program.main(['versions', *(flag.format(tmp_path) for flag in flags)]) == 2
  assert 'expected' in capsys.readouterr().err
