"""Jobs on a mesh of eight devices, on local files, with thumbs and full tuning."""

import json

import jax
import numpy as np
import pytest
import toyrun as run
from test_resume import from_run

from perl.cli import launch
from perl.data.sets import toy
from perl.evaluate import references
from perl.jobs import evaluate, reward, rl, sft
from perl.train import checkpoint


def column(folder, name):
  """A metric over the steps."""
  return [row[name] for row in run.rows(folder) if name in row]


def test_eight_devices_give_the_losses_of_one(toyrun, tmp_path):
  config = from_run(toyrun, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  with run.small_world(devices=8):
    sft.run(config, str(tmp_path / 'sft'))
  for name in ('train/loss', 'dev/loss', 'train/grad_norm'):
    ours, theirs = (column(f / 'sft', name) for f in (tmp_path, toyrun))
    assert len(ours) >= 4
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_mesh_that_is_not_the_devices_is_refused(toyrun, tmp_path):
  config = from_run(toyrun, mesh__data=2, mesh__fsdp=2, mesh__tensor=3)
  with pytest.raises(ValueError, match=r'product is the 8 devices, found \[2, 2, 3\]'):
    sft.run(config, str(tmp_path / 'sft'))


# --- Local files


def write_pairs(folder, broken=''):
  """A folder of preference files with the toy's pairs; `broken` is appended to train."""
  folder.mkdir()
  for split, count in (('train', 32), ('dev', 8), ('test', 8)):
    pairs = toy.load(split, 'preference')[:count]
    lines = [json.dumps({n: getattr(p, n) for n in ('prompt', 'chosen', 'rejected', 'group')})
             for p in pairs]
    text = '\n'.join([*lines, broken] if broken and split == 'train' else lines)
    (folder / f'{split}.jsonl').write_text(text + '\n')
  return str(folder)


def local(toyrun, mirror):
  return from_run(toyrun, data__name='local', data__mirror=mirror, reward__steps=2)


def test_a_reward_model_learns_from_local_files(toyrun, tmp_path):
  with run.small_world():
    found = reward.run(local(toyrun, write_pairs(tmp_path / 'data')), str(tmp_path / 'reward'))
  assert 0 <= found['pair_accuracy'] <= 1 and np.isfinite(found['dev_loss'])
  assert (tmp_path / 'reward' / 'adapter').exists()
  assert run.read(tmp_path / 'reward' / 'summary.json')['pair_accuracy'] == found['pair_accuracy']


def test_a_malformed_row_is_named_by_file_and_line(toyrun, tmp_path):
  mirror = write_pairs(tmp_path / 'data', broken='{"prompt": "a", "chosen": ')
  with run.small_world(), pytest.raises(ValueError) as error:
    reward.run(local(toyrun, mirror), str(tmp_path / 'reward'))
  assert 'train.jsonl' in str(error.value) and '33' in str(error.value)
  assert not (tmp_path / 'reward' / 'summary.json').exists()


def test_fewer_examples_are_among_more_and_those_of_a_seed():
  every = list(range(50))
  ten, twenty = (reward.some(every, n, seed=3) for n in (10, 20))
  assert twenty[:10] == ten and len(set(twenty)) == 20 and reward.some(every, 0, seed=3) == every
  assert reward.some(every, 10, seed=4) != ten
  assert reward.some(every, 10, seed=3, skip=10) == twenty[10:]
  assert {*every} == {*ten, *reward.some(every, 0, seed=3, skip=10)}
  with pytest.raises(ValueError, match='reward.max_examples=51 examples .* found 50'):
    reward.some(every, 51, seed=3)
  with pytest.raises(ValueError, match='examples to learn from after reward.skip_examples=50'):
    reward.some(every, 0, seed=3, skip=50)


# --- Thumbs, full tuning


def test_thumbs_are_compared_with_a_bag_of_words_and_with_the_probe(toyrun, tmp_path):
  config = from_run(toyrun, reward__kind='pointwise', reward__steps=2, reward__probe=True)
  with run.small_world():
    found = reward.run(config, str(tmp_path / 'reward'))
  for name in ('auc', 'baseline_auc', 'probe_auc'):
    assert 0 <= found[f'{name}_low'] <= found[name] <= found[f'{name}_high'] <= 1


def test_a_reward_model_can_be_the_last_one(toyrun, tmp_path):
  config = from_run(toyrun, reward__keep='last', reward__steps=6)
  with run.small_world():
    found = reward.run(config, str(tmp_path / 'reward'))
  assert found['dev_loss'] == column(tmp_path / 'reward', 'dev/loss')[-1]


def test_full_tuning_goes_through_the_same_stages(toyrun, tmp_path):
  config = run.config(
    inputs__tokenizer=str(toyrun / 'tokenizer'), inputs__base=str(toyrun / 'pretrain'),
    peft__name='full', sft__steps=2, reward__steps=2, rl__steps=2,
  )
  with run.small_world():
    found = launch.run_stages(config, ('sft', 'reward', 'rl'), tmp_path)
  total = found['sft']['parameters_total']
  assert found['sft']['parameters_trainable'] == found['rl']['parameters_trainable'] == total
  assert found['reward']['parameters_trainable'] > total  # the head
  assert abs(run.rows(tmp_path / 'rl')[0]['dev/kl']) < 1e-4
  base, _ = checkpoint.load_tree(toyrun / 'pretrain' / 'base')
  adapter, meta = checkpoint.load_tree(tmp_path / 'sft' / 'adapter')
  assert meta['method'] == 'full' and len(jax.tree.leaves(adapter)) == len(jax.tree.leaves(base))


# --- The same work, laid out otherwise


def test_a_prompt_shared_by_its_pair_changes_no_loss(toyrun, tmp_path):
  with run.small_world():
    reward.run(from_run(toyrun, reward__share_prompt=True), str(tmp_path / 'reward'))
  for name in ('train/loss', 'dev/pair_accuracy'):
    ours, theirs = (column(f / 'reward', name) for f in (tmp_path, toyrun))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_packed_examples_are_learnt(toyrun, tmp_path):
  config = from_run(toyrun, sft__packed=True, sft__batch_size=4)
  with run.small_world():
    found = sft.run(config, str(tmp_path / 'sft'))
  first = column(tmp_path / 'sft', 'dev/loss')[0]
  assert first == pytest.approx(column(toyrun / 'sft', 'dev/loss')[0], rel=1e-5)
  assert found['loss'] < first


@pytest.mark.parametrize('how', [
  {'layout': 'separate', 'decode': 'adapter'}, {'forwards': 'stacked', 'slots': 4}], ids=str)
def test_rl_in_other_ways_is_the_same_rl(toyrun, tmp_path, how):
  config = from_run(toyrun, rl__steps=2, **{f'rl__{k}': v for k, v in how.items()})
  with run.small_world():
    rl.run(config, str(tmp_path / 'rl'))
  for name in ('train/reward', 'train/kl', 'train/response_tokens'):
    ours, theirs = (column(f / 'rl', name) for f in (tmp_path, toyrun))
    np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-3, atol=1e-3)


def test_several_samples_of_a_prompt_make_an_update(toyrun, tmp_path):
  config = from_run(
    toyrun, rl__samples=4, rl__microbatches=2, rl__cache='int8', rl__steps=2, data__auto_buckets=2,
    rl__baseline='leave_one_out', rl__regularizer='bregman')
  with run.small_world():
    found = rl.run(config, str(tmp_path / 'rl'))
  assert np.isfinite(found['reward']) and len(column(tmp_path / 'rl', 'train/reward')) == 2


def test_rules_reward_without_a_reward_model(toyrun, tmp_path):
  config = from_run(toyrun, rl__samples=2, rl__steps=2, rl__reward_weight=0.0,
                    rl__rules=('length', 'test_variants:asks'), rl__rule_weights=(-1.0, 2.0))
  config.inputs.reward = str(tmp_path / 'there is none')
  config.inputs.policy = str(tmp_path / 'rl')
  with run.small_world():
    rl.run(config, str(tmp_path / 'rl'))
    found = evaluate.run(config, str(tmp_path / 'evaluate'))
  for row in run.rows(tmp_path / 'rl'):
    if 'train/reward' in row:
      total = -row['train/rule_length'] + 2 * row['train/rule_test_variants:asks']
      assert row['train/reward'] == pytest.approx(total, abs=1e-5)
  texts = [row['after'] for row in run.read(tmp_path / 'evaluate' / 'responses.json')]
  expected = np.mean([-len(text) / 100 + 2 * ('?' in text) for text in texts])
  assert found['reward'] == pytest.approx(expected, abs=1e-5)


def asks(examples, responses, dataset):
  """A rule: whether the response asks something."""
  assert dataset is toy and all(example.prompt for example in examples)
  return ['?' in text for text in responses]


def test_rules_come_on_top_of_the_reward_model(toyrun, tmp_path):
  config = from_run(toyrun, rl__steps=1, rl__reward_weight=0.5, rl__rules=('length',))
  with run.small_world():
    rl.run(config, str(tmp_path / 'rl'))
  ours, theirs = (run.rows(f / 'rl')[1] for f in (tmp_path, toyrun))
  assert ours['train/reward'] == pytest.approx(
    0.5 * theirs['train/reward'] + ours['train/rule_length'], rel=1e-4)


def test_the_reward_of_each_response_is_kept_and_length_has_its_share(toyrun):
  rows = run.read(toyrun / 'evaluate' / 'responses.json')
  found = run.read(toyrun / 'evaluate' / 'summary.json')
  for when in ('before', 'after'):
    suffix = {'before': '_before', 'after': ''}[when]
    for name, field in (('reward', 'reward'), ('tokens', 'response_tokens')):
      assert np.mean([row[f'{name}_{when}'] for row in rows]) == pytest.approx(
        found[f'{field}{suffix}'], abs=1e-5)
  assert found['length_gain'] == pytest.approx(found['reward'] - found['reward_before'], abs=1e-5)
  assert found['length_responses'] == len(rows)


def test_sft_measures_what_it_says_beside_all_references(toyrun, tmp_path):
  pytest.importorskip('sacrebleu')
  mirror = tmp_path / 'data'
  mirror.mkdir()
  for split in ('train', 'dev', 'test'):
    pairs = [(e.prompt, e.response) for e in toy.load(split, 'demonstration')[:8]]
    rows = [{'prompt': prompt, 'response': own, 'references': [response, 'another', own]}
            for prompt, response in pairs for own in (response, 'again')]
    (mirror / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  config = from_run(toyrun, data__name='local', data__mirror=str(mirror), sft__steps=1,
                    sft__test=True, evaluate__bootstrap=5)
  asked = []
  with run.small_world() as patch:
    report = references.report
    patch.setattr(references, 'report', lambda texts, theirs, **how: asked.extend(
      zip(texts, theirs)) or report(texts, theirs, **how))
    found = sft.run(config, str(tmp_path / 'sft'))
  assert len(asked) == len({prompt for prompt, _ in pairs})  # one a prompt, though it has two rows
  assert 0 <= found['test_bleu_low'] <= found['test_bleu'] <= 100 >= found['test_rouge_l']
