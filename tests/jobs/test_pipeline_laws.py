"""Laws of a finished pipeline, read off the files that it left."""

import html.parser
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import toyrun as run

from perl import trees
from perl.cli import launch
from perl.config.fields import ConfigError
from perl.jobs._artefacts import Artefacts
from perl.jobs._run import Run
from perl.models import lm
from perl.peft import adapters
from perl.train import checkpoint

STAGES = ('tokenizer', 'pretrain', 'sft', 'reward', 'rl', 'evaluate')
TRAINED = STAGES[1:5]


def setting(workdir, stage, **overrides):
  """The setting of a finished stage, and nothing written."""
  return Run(run.config(**overrides), str(workdir / stage), stage)


@pytest.mark.parametrize('stage', STAGES)
def test_a_stage_leaves_its_files(toyrun, stage):
  summary, config = (run.read(toyrun / stage / f'{n}.json') for n in ('summary', 'config'))
  assert config['data']['name'] == 'toy' and config['model']['size'] == 'nano'
  assert summary['seed'] == 0 and summary['peft'] == 'lora' and summary['wall_seconds'] > 0
  assert {'commit', 'versions', 'hardware', 'peak_memory_bytes'} <= summary.keys()
  if stage in TRAINED:
    assert {'parameters_trainable', 'parameters_total', 'step_seconds'} <= summary.keys()
  if stage != 'tokenizer':
    rows = run.rows(toyrun / stage)
    assert rows == sorted(rows, key=lambda row: row['step'])
    assert all(np.isfinite(v) for row in rows for v in row.values() if v is not None)


@pytest.mark.parametrize('stage', TRAINED)
def test_metrics_hold_every_step_and_every_evaluation(toyrun, stage):
  rows = run.rows(toyrun / stage)
  steps = lambda prefix: [r['step'] for r in rows if any(k.startswith(prefix) for k in r)]
  assert steps('train/') == [1, 2, 3, 4, 5, 6]
  assert steps('dev/') == [0, 2, 4, 6]


def test_the_summary_has_the_promised_form(toyrun):
  summary = run.read(toyrun / 'summary.json')
  assert 0 <= summary['sft']['gold_reward'] <= 1 and 0 <= summary['rl']['gold_reward'] <= 1
  assert np.isfinite(summary['rl']['kl']) and np.isfinite(summary['rl']['reward_start'])
  reward = summary['reward']
  assert reward['accuracy'] == reward['pair_accuracy'] and 0 <= reward['accuracy'] <= 1
  assert 0 <= reward['auc_low'] <= reward['auc'] <= reward['auc_high'] <= 1
  assert summary['gold_optimum'] == 1.0
  assert summary['wall_seconds'] >= sum(summary[s]['wall_seconds'] for s in STAGES) * 0.99


# --- What lies on disk


def test_the_base_is_saved_once_and_no_later_stage_changes_it(toyrun):
  assert [p.parent.name for p in toyrun.glob('*/base')] == ['pretrain']
  tree, meta = checkpoint.load_tree(toyrun / 'pretrain' / 'base')
  assert trees.digest(tree) == meta['digest']
  for stage in ('sft', 'reward', 'rl'):
    last = max((toyrun / stage / 'checkpoints').glob('*'), key=lambda p: int(p.name))
    size = sum(p.stat().st_size for p in last.rglob('*') if p.is_file())
    assert size < trees.size_bytes(tree), 'a checkpoint of an adapter holds no base'


def test_an_adapter_loads_bit_equal_to_the_state_that_was_saved(toyrun):
  found = checkpoint.Checkpoints(toyrun / 'rl' / 'checkpoints').restore()
  assert found.step == 6
  saved, meta = checkpoint.load_tree(toyrun / 'rl' / 'adapter')
  tiny.equal(saved, found.tree['adapters']['policy'])
  with run.small_world():
    here = setting(toyrun, 'rl')
    anchor = Artefacts(here).anchor()
    adapter, _ = Artefacts(here).adapter(str(toyrun / 'rl'), anchor)
  assert trees.digest(adapter) == trees.digest(saved)
  assert meta['base_digest'] == anchor.digest and meta['rank'] == 2 and meta['method'] == 'lora'


def test_an_adapter_over_another_base_is_refused(toyrun, tmp_path):
  base, meta = checkpoint.load_tree(toyrun / 'pretrain' / 'base')
  other = tiny.noisy(base, 0.01)
  checkpoint.save_tree(tmp_path / 'base', other, meta | {'digest': trees.digest(other)})
  shutil.copy(toyrun / 'pretrain' / 'summary.json', tmp_path)
  with run.small_world(), pytest.raises(checkpoint.MismatchError) as error:
    Artefacts(setting(toyrun, 'rl', inputs__base=str(tmp_path))).anchor()
  text = str(error.value)
  assert f'base_digest: expected {trees.digest(other)!r}, found {meta["digest"]!r}' in text
  assert 'remedy: ' in text


def test_the_anchor_is_known_by_what_it_is_made_of_not_by_its_last_bits(toyrun, monkeypatch):
  """Merged floats differ with cores, flags and devices; the base and the adapter do not."""
  with run.small_world():
    anchor = Artefacts(setting(toyrun, 'rl')).anchor()
    merge = adapters.merge
    monkeypatch.setattr(adapters, 'merge', lambda *parts: tiny.noisy(merge(*parts), 1e-7))
    elsewhere = Artefacts(setting(toyrun, 'rl')).anchor()
  assert trees.digest(elsewhere.params) != trees.digest(anchor.params)
  assert elsewhere.digest == anchor.digest


def test_an_adapter_that_knows_its_anchor_by_the_former_name_is_read(toyrun, tmp_path):
  tree, meta = checkpoint.load_tree(toyrun / 'rl' / 'adapter')
  with run.small_world():
    artefacts = Artefacts(setting(toyrun, 'rl'))
    anchor = artefacts.anchor()
    former = trees.digest(anchor.params)
    checkpoint.save_tree(tmp_path / 'old' / 'adapter', tree, meta | {'base_digest': former})
    checkpoint.save_tree(tmp_path / 'other' / 'adapter', tree, meta | {'base_digest': 'f' * 64})
    tiny.equal(artefacts.adapter(str(tmp_path / 'old'), anchor)[0],
               artefacts.adapter(str(toyrun / 'rl'), anchor)[0])
    with pytest.raises(checkpoint.MismatchError, match='base_digest.*\n.*older version'):
      artefacts.adapter(str(tmp_path / 'other'), anchor)
  resumed = artefacts.resumed(anchor)
  assert resumed['renamed']({'base_digest': former})['base_digest'] == anchor.digest


def test_another_shape_of_model_is_refused(toyrun):
  with run.small_world(), pytest.raises(checkpoint.MismatchError, match='expected .*128'):
    Artefacts(setting(toyrun, 'sft', model__size='tiny')).base()


# --- Roles at step 0


def test_the_policy_starts_as_the_anchor(toyrun):
  first = run.rows(toyrun / 'rl')[0]
  assert first['step'] == 0 and abs(first['dev/kl']) < 1e-4  # decoding against teacher forcing
  assert abs(run.read(toyrun / 'evaluate' / 'summary.json')['kl_before']) < 1e-4
  with run.small_world():
    here = setting(toyrun, 'rl')
    anchor = Artefacts(here).anchor()
    fresh = Artefacts(here).new_adapter(anchor, here.key)
  tokens = tiny.tokens(vocabulary=300)
  mask = tiny.right_mask([10, 4, 7, 1])
  ours = lm.logits(anchor.model, anchor.params, fresh, tokens, mask)
  np.testing.assert_array_equal(ours, lm.logits(anchor.model, anchor.params, {}, tokens, mask))


def test_the_sampler_and_the_trainer_agree(toyrun):
  gaps = [r['train/sampler_gap'] for r in run.rows(toyrun / 'rl') if 'train/sampler_gap' in r]
  assert len(gaps) == 6 and max(gaps) < 1e-4


def test_every_adapter_has_moved_and_rl_has_left_the_anchor(toyrun):
  for stage in ('sft', 'reward', 'rl'):
    tree, _ = checkpoint.load_tree(toyrun / stage / 'adapter')
    moved = [np.abs(x).max() for name, x in trees.flat(tree).items() if name.endswith('/b')]
    assert moved and min(moved) > 0
  # An estimate from few samples, of either sign; at the anchor it is 0 but for rounding.
  assert abs(run.rows(toyrun / 'rl')[-1]['dev/kl']) > 1e-4


def test_nothing_is_compiled_after_a_stages_first_step(toyrun):
  assert run.read(toyrun / 'compilations.json') == {}


# --- The report, and running it again


class Outline(html.parser.HTMLParser):
  """Headings, tables and open tags of a page."""

  def __init__(self, text):
    super().__init__()
    self.open, self.text, self.closed_wrongly = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag not in ('meta', 'link', 'br', 'hr', 'img'):
      self.open.append(tag)
    assert not any(v and v.startswith('http') for k, v in attributes if k in ('src', 'href'))

  def handle_startendtag(self, tag, attributes):
    pass  # <line ... />

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.closed_wrongly.append(tag)

  def handle_data(self, data):
    self.text.append(data)


def test_the_report_is_whole_and_tells_the_headline(toyrun):
  page = Outline((toyrun / 'report.html').read_text())
  assert page.open == [] and page.closed_wrongly == []
  text, summary = ''.join(page.text), run.read(toyrun / 'summary.json')
  assert 'toyrun' in text and 'Gold reward went from' in text
  for figure in ('gold_reward_before', 'gold_reward'):
    assert f'{summary["evaluate"][figure]:.3f}' in text
  assert f'{summary["evaluate"]["kl"]:.2f}' in text
  assert f'{summary["reward"]["auc"]:.3f}' in text


def test_samples_show_the_same_prompts_before_and_after(toyrun):
  samples = json.loads((toyrun / 'evaluate' / 'samples.json').read_text())
  assert len(samples) == 3
  for sample in samples:
    assert sample['prompt'].endswith('<|agent|>') and sample['reference']
    assert {'before', 'after', 'gold_before', 'gold_after', 'reward_before',
            'reward_after'} <= sample.keys()


def files(folder):
  """{path: (mtime, size)} of all that the stages wrote."""
  return {
    p: (p.stat().st_mtime_ns, p.stat().st_size)
    for stage in STAGES for p in (folder / stage).rglob('*') if p.is_file()
  }


def test_a_second_run_computes_nothing(toyrun, tmp_path, capsys):
  shutil.copytree(toyrun, tmp_path / 'run')
  before, config = files(tmp_path / 'run'), run.config()
  with run.small_world():
    summary = launch.run_stages(config, config.stages, tmp_path / 'run')
  assert capsys.readouterr().out.count('skipped: finished before') == len(STAGES)
  assert files(tmp_path / 'run') == before
  first = run.read(toyrun / 'summary.json')
  assert {s: summary[s] for s in STAGES} == {s: first[s] for s in STAGES}


def test_another_config_is_refused_and_touches_nothing(toyrun):
  before, config = files(toyrun), run.config(sft__steps=7)
  with pytest.raises(ConfigError, match=r'sft\.steps: expected 7, found 6'):
    launch.run_stages(config, config.stages, toyrun)
  assert files(toyrun) == before


def test_a_stage_needs_finished_inputs(tmp_path):
  with pytest.raises(FileNotFoundError, match='--config.inputs.base'):
    setting(tmp_path, 'sft').input('base')


def test_keys_differ_by_stage_and_seed():
  keys = [Run(run.config(seed=seed), '', stage).key
          for stage in (*STAGES, 'preference') for seed in (0, 1)]
  assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == len(keys)
