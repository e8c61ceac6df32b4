"""The six recipes of docs/architecture.md: each is built in a copy of the package, and runs."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import quick
import tiny
import toyrun

from perl.hub import families
from perl.train import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
SECTIONS = (ROOT / 'docs/architecture.md').read_text().split('\n## Six recipes\n')[1]
RECIPES = {
  'algorithm': 1, 'PEFT method': 1, 'dataset': 1, 'family of models': 1, 'job': 2, 'metric': 1}
"""Recipe -> how many files it may touch."""

BLOCK = re.compile(r'^`(perl/[\w/]+\.py)`([^\n]*):\n\n```python\n(.*?)```', re.M | re.S)


def blocks(recipe: str) -> list[tuple[str, str, str]]:
  """[(file, what is said of it, code)] of a recipe."""
  section = re.split(r'\n### A new ', SECTIONS)[1:]
  return BLOCK.findall(next(text for text in section if text.startswith(f'{recipe}\n')))


@pytest.fixture(scope='module')
def house(tmp_path_factory) -> pathlib.Path:
  """A copy of the package with all six recipes in it."""
  root = tmp_path_factory.mktemp('house')
  for name in ('perl', 'configs'):
    shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
  for recipe in RECIPES:
    for file, about, code in blocks(recipe):
      path = root / file
      if 'a row of `STAGES`' in about:
        head, tail = path.read_text().split('\nSTAGES = {\n')
        rows, tail = tail.split('\n}\n', 1)
        code = f'{head}\nSTAGES = {{\n{rows}\n{code}}}\n{tail}'
      else:
        assert not path.exists(), file
      path.write_text(code)
  return root


def program(house: pathlib.Path, *words: str) -> str:
  """What `perl-rlhf <words>` prints, in the copy."""
  done = subprocess.run(
    [sys.executable, '-m', 'perl.cli', *words], cwd=house, text=True, capture_output=True,
    env={**os.environ, **quick.ENVIRON, 'PYTHONPATH': str(house)})
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


@pytest.fixture(scope='module')
def run(house) -> pathlib.Path:
  """A run of all of them but the family, one over another."""
  workdir = house / 'run'
  program(
    house, 'launch', '--config=configs/demo.py', f'--workdir={workdir}', '--config.data.name=echo',
    '--config.rl.algorithm=ranks', '--config.peft.name=rank_one',
    "--config.rl.rules=('gold','words')", '--config.rl.rule_weights=(1.0,0.0)',
    '--config.rl.reward_weight=0.0',
    "--config.stages=('tokenizer','pretrain','sft','rl','evaluate','answers')", *toyrun.SMALL)
  return workdir


@pytest.mark.parametrize('recipe, files', RECIPES.items())
def test_a_recipe_touches_few_files_and_is_short(recipe, files):
  touched = blocks(recipe)
  assert 1 <= len(touched) <= files
  assert sum(len(code.splitlines()) for *_, code in touched) <= 50


def summary(run: pathlib.Path, stage: str) -> dict:
  return json.loads((run / stage / 'summary.json').read_text())


def test_the_algorithm_learns_from_ranks(run):
  config = json.loads((run / 'rl' / 'config.json').read_text())
  assert config['rl']['algorithm'] == 'ranks'
  rows = [json.loads(line) for line in (run / 'rl' / 'metrics.jsonl').read_text().splitlines()]
  advantages = [row['train/advantage'] for row in rows if 'train/advantage' in row]
  assert len(advantages) == 2  # of either step; over whole responses ranks sum to 0
  assert summary(run, 'rl')['reward'] >= 0


def test_the_method_is_what_was_trained(run):
  _, meta = checkpoint.load_tree(str(run / 'rl' / 'adapter'))
  assert meta['method'] == 'rank_one'
  assert meta['parameters'] == summary(run, 'sft')['parameters_trainable'] > 0


def test_the_dataset_is_what_was_learnt(run):
  samples = json.loads((run / 'evaluate' / 'samples.json').read_text())
  assert all(re.search(r'say [a-f]{3}', sample['prompt']) for sample in samples)
  assert json.loads((run / 'summary.json').read_text())['gold_optimum'] == 1.0
  assert 0 <= summary(run, 'evaluate')['gold_reward'] <= 1


def test_the_job_ran_and_is_in_summary_and_report(run):
  answers = json.loads((run / 'answers' / 'answers.json').read_text())
  assert len(answers) == summary(run, 'answers')['responses'] > 0
  assert json.loads((run / 'summary.json').read_text())['answers']['responses'] == len(answers)


def test_the_metric_is_logged_and_drawn(run):
  rows = [json.loads(line) for line in (run / 'rl' / 'metrics.jsonl').read_text().splitlines()]
  words = [row['train/rule_words'] for row in rows if 'train/rule_words' in row]
  assert len(words) == 2 and all(value >= 0 for value in words)
  assert 'Rule words' in (run / 'report.html').read_text()


def test_the_family_gives_the_logits_of_transformers(house, tmp_path):
  import releases

  config = releases.transformers.SeedOssConfig(
    **releases.SHAPE, **releases.IDS, attention_bias=True, attention_out_bias=True, mlp_bias=True)
  releases.torch.manual_seed(0)
  model = releases.transformers.SeedOssForCausalLM(config)
  releases.noisy(model, 0.2).save_pretrained(tmp_path / 'model')
  program(house, 'convert', 'check', f'--folder={tmp_path}/model', f'--json={tmp_path}/check.json')
  check = json.loads((tmp_path / 'check.json').read_text())
  assert check['compared'] == 'logits' and check['relative'] < 1e-4


def test_the_family_is_written_as_it_was_read(house, monkeypatch):
  (house / 'families').mkdir()
  shutil.copy(house / 'perl/hub/families/seed_oss.py', house / 'families')
  monkeypatch.setattr(families, '__path__', [*families.__path__, str(house / 'families')])
  fields = families.describe(tiny.config(qkv_bias=True, out_bias=False, mlp_bias=True), 'seed_oss')
  assert fields['attention_out_bias'] is False and fields['attention_bias'] is True
  assert families.parse(fields) == tiny.config(
    qkv_bias=True, mlp_bias=True, scan_unroll=families.parse(fields).scan_unroll)
