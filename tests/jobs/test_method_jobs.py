"""Every method in every job: all by the programs that a job would run, one of a kind by running."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import toyrun as run
from test_resume import from_run

from perl import choices, trees
from perl.cli import launch
from perl.config import schema as fields
from perl.jobs import _programs as programs
from perl.peft import adapters
from perl.train import checkpoint

SMALL = dict(peft__rank=2, peft__bottleneck=4, peft__virtual_tokens=3, peft__dimension=8)
PIPELINES = ('prompt', 'mole', 'intrinsic')
"""One of a kind: not in the layers, no merging, at the root."""


@pytest.mark.parametrize('method', choices.names('perl.peft.methods'))
def test_every_job_has_its_programs_with_every_method(method):
  """Rollout and experience are traced as the stage is made, updates here."""
  config = run.config(peft__name=method, **SMALL)
  for name in ('reward', 'rl'):  # sft's update is pretrain's, which the laws of methods hold
    stage = programs.stage(config, name)
    learning = stage.state.adapters
    for adapter in learning.values() if name == 'rl' else (learning,):
      assert adapters.count(adapter) > 0
    stage.programs['update'].trace()
  assert set(learning) == {'policy', 'critic'}


@pytest.mark.parametrize('method', PIPELINES)
def test_a_pipeline_over_an_anchor_that_it_cannot_be_merged_into(method, toyrun, tmp_path):
  """What SFT learnt stays below what reward model and policy learn, to the bit."""
  config = run.config(
    inputs__tokenizer=str(toyrun / 'tokenizer'), inputs__base=str(toyrun / 'pretrain'),
    peft__name=method, sft__steps=2, reward__steps=2, rl__steps=2, rl__baseline='batch_mean',
    **SMALL)
  stages = ('sft', 'reward', 'rl')
  with run.small_world():
    launch.run_stages(config, (*stages, 'evaluate') if method == 'prompt' else stages, tmp_path)
  found = {stage: run.read(tmp_path / stage / 'summary.json') for stage in stages}
  merged = method == 'intrinsic'
  assert ('merge_logit_difference' in found['sft']) == merged
  assert np.isfinite(found['rl']['reward'])
  identity = getattr(adapters.find(method), 'IDENTITY', True)
  assert (abs(found['rl']['kl_start']) < 1e-5) == identity
  saved = {stage: checkpoint.load_tree(tmp_path / stage / 'adapter') for stage in stages}
  shapes = [jax.tree.map(np.shape, {k: v for k, v in tree.items() if k != 'head'})
            for tree, _ in saved.values()]
  assert shapes[0] == shapes[1] == shapes[2]  # of each stage its own alone
  digests = {stage: meta['base_digest'] for stage, (_, meta) in saved.items()}
  assert digests['reward'] == digests['rl'] != digests['sft']


def test_sft_measures_its_result_on_the_test_split(toyrun, tmp_path):
  config = from_run(toyrun, sft__steps=2, sft__test=True)
  with run.small_world():
    launch.run_stages(config, ('sft',), tmp_path)
  found = json.loads((tmp_path / 'sft' / 'summary.json').read_text())
  assert 0 < found['test_loss'] < 20 and 0 <= found['test_exact_match'] <= 1


def test_fields_of_methods_are_options_of_methods():
  from perl.peft import protocol

  own = {name.removeprefix('peft.') for name in fields.FIELDS if name.startswith('peft.')}
  others = {'name', 'targets', 'top_layers'}
  assert own - others <= protocol.known_options()
  assert protocol.known_options() - own <= {'decay'}


def test_a_budget_of_ranks_resumes_to_the_bit(toyrun, tmp_path):
  """Importance and step of the budget are in the checkpoint, for they are the optimizer's."""
  config = from_run(toyrun, peft__name='adalora', sft__steps=4, peft__budget_every_steps=1, **SMALL)
  found = []
  with run.small_world():
    for _ in range(2):
      launch.run_stages(config, ('sft',), tmp_path)
      found.append(checkpoint.load_tree(tmp_path / 'sft' / 'adapter')[0])
      shutil.rmtree(tmp_path / 'sft' / 'adapter')
      shutil.rmtree(tmp_path / 'sft' / 'checkpoints' / '4')
      (tmp_path / 'sft' / 'summary.json').unlink()
  tiny.equal(*found)
  ranks = [np.count_nonzero(x) for n, x in trees.flat(found[0]).items() if n.endswith('/e')]
  assert sum(ranks) == 2 * 4 * 2
