"""The launcher as users start it: a process of its own, its exit code, its files, its words."""

import os
import pathlib
import subprocess
import sys

import pytest
from toyrun import read

ROOT = pathlib.Path(__file__).parents[2]


def launch(workdir, *overrides) -> subprocess.CompletedProcess:
  """One call of the program, on one device, with a compiler that does not try hard."""
  quick = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
           'JAX_COMPILATION_CACHE_DIR': str(pathlib.Path(workdir) / 'xla')}
  command = [sys.executable, '-m', 'experiments.launch', '--config=configs/demo.py',
             f'--workdir={workdir}', *overrides]
  return subprocess.run(command, cwd=ROOT, env={**os.environ, **quick}, capture_output=True,
                        text=True, timeout=900)


TINY = {
  'model.size': 'nano', 'model.scan_unroll': 1, 'tokenizer.vocab_size': 300,
  'data.max_prompt_tokens': 24, 'data.max_response_tokens': 8, 'peft.rank': 2,
  'pretrain.steps': 2, 'sft.steps': 2, 'pretrain.batch_size': 8, 'sft.batch_size': 8,
  'pretrain.optim.warmup_steps': 1, 'sft.optim.warmup_steps': 1, 'rl.max_new_tokens': 8,
  'evaluate.max_examples': 16, 'stages': "('tokenizer', 'pretrain', 'sft')",
}


def test_a_pipeline_in_a_process_of_its_own(tmp_path):
  done = launch(tmp_path, *(f'--config.{name}={value}' for name, value in TINY.items()))
  assert done.returncode == 0, done.stderr
  for stage in ('tokenizer', 'pretrain', 'sft'):
    for name in ('config.json', 'summary.json'):
      assert (tmp_path / stage / name).exists()
  summary = read(tmp_path / 'summary.json')
  assert 0 <= summary['sft']['gold_reward'] <= 1 and summary['wall_seconds'] > 0
  assert read(tmp_path / 'config.json')['peft']['rank'] == 2
  assert (tmp_path / 'report.html').read_text().endswith('</html>\n')
  assert f'the report is {tmp_path / "report.html"}' in done.stdout
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('override, said', [
  ('--config.sft.stpes=3', "did you mean 'sft.steps'"),
  ('--config.model.size=nanno', "did you mean 'nano'"),
])
def test_a_wrong_override_ends_with_code_2_and_the_nearest_name(tmp_path, override, said):
  done = launch(tmp_path / 'run', override)
  assert done.returncode == 2
  assert said in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()
