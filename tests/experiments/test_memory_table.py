"""The table of memory: compiled from shapes, through the jobs' own step."""

import json

import pytest
import toyrun

from experiments import memory


@pytest.mark.parametrize('remat', ['none', 'layer'])
def test_lora_takes_less_than_full_tuning_where_weights_count(remat):
  shape = dict(size='nano', vocab_size=512, pairs=1, tokens=8, remat=remat, dtype='float32', rank=2)
  lora, full = (memory.measure(method, **shape) for method in ('lora', 'full'))
  assert lora['total'] == full['total'] and lora['trainable'] < full['trainable'] / 10
  assert lora['total_bytes'] < full['total_bytes'] / 2


def test_the_program_prints_and_writes_its_table(tmp_path, monkeypatch, capsys):
  out = tmp_path / 'memory.json'
  monkeypatch.setattr('sys.argv', [
    'memory', '--size=nano', '--vocab_size=64', '--pairs', '1', '--tokens=8', f'--json={out}'])
  with toyrun.quick_compiler():  # what is printed is of interest, not how little it is
    memory.main()
  rows = json.loads(out.read_text())['rows']
  assert [row['remat'] for row in rows] == ['none', 'products', 'layer']
  printed = capsys.readouterr().out
  assert all(f'| 1 | {row["remat"]} |' in printed for row in rows)
