"""The loop: a run that was killed and resumed is the run that was never killed, to the bit."""

import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from perl.train import loop, optim, step
from perl.train.checkpoint import MismatchError
from perl.types import Mean

META = {'method': 'lora', 'rank': 8}
TX = optim.make('adamw', learning_rate=0.05, steps=20, schedule_name='cosine', warmup_steps=3)


def noisy_square(tree, base, batch, key):
  """A loss that depends on data, key and base."""
  noise = jax.random.normal(key, batch['y'].shape)
  error = jnp.square(tree['w'].sum() * base['x'] - batch['y'] + 0.1 * noise)
  return Mean.of(error), {'error': Mean.of(error)}


UPDATE = step.make_train_step(noisy_square, TX)
BASE = {'x': jnp.float32(2.0)}


class Stream:
  """Random batches; the place is the number of those drawn."""

  def __init__(self, bad=()):
    self.place, self.bad = 0, bad

  def __next__(self):
    y = np.random.default_rng(self.place).normal(size=4).astype(np.float32)
    self.place += 1
    return {'y': y * np.nan if self.place in self.bad else y}

  def get_state(self):
    return {'place': self.place}

  def set_state(self, state):
    self.place = state['place']


def fresh():
  return step.init_state({'w': jnp.arange(3.0)}, TX, jax.random.key(5))


def evaluate(state):
  return {'score': float(-jnp.square(state.adapters['w'].sum() - 0.3))}


def fit(workdir, steps, *, step_fn=None, stream=None, meta=META, **options):
  options = {'evaluate': evaluate, 'evaluate_every_steps': 4, 'log_every_steps': 2, **options}
  return loop.fit(
    step_fn or (lambda state, batch: UPDATE(state, BASE, batch)), fresh(), stream or Stream(),
    steps=steps, workdir=str(workdir), meta=meta, name='test', **options,
  )


def rows(workdir):
  """The metrics, without what is measured with a clock."""
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  clock = lambda name: 'seconds' in name or name == 'time'
  return [{k: v for k, v in json.loads(line).items() if not clock(k)} for line in lines]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The run that was never killed."""
  workdir = tmp_path_factory.mktemp('whole')
  return (*fit(workdir, 12), rows(workdir))


def check_same(found, workdir, whole):
  state, result = found
  tiny.equal(state, whole[0])
  assert result['score'] == whole[1]['score']
  assert [r for r in rows(workdir) if r['step'] > 8] == [r for r in whole[2] if r['step'] > 8]


def test_resumed_is_never_killed(whole, tmp_path):
  fit(tmp_path, 8)
  check_same(fit(tmp_path, 12), tmp_path, whole)
  assert rows(tmp_path) == whole[2]


class Killed(Exception):
  pass


def test_killed_between_checkpoints_it_repeats_the_steps_since(whole, tmp_path):
  """A hard stop at step 11: the checkpoint of step 8 is found, and nothing is logged twice."""

  def dying(state, batch):
    if state.step == 10:
      raise Killed
    return UPDATE(state, BASE, batch)

  with pytest.raises(Killed):
    fit(tmp_path, 12, step_fn=dying)
  check_same(fit(tmp_path, 12), tmp_path, whole)
  assert rows(tmp_path) == whole[2]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_same_command_resumes(whole, tmp_path, number):

  def signalled(state, batch):
    if state.step == 6:
      os.kill(os.getpid(), number)
    return UPDATE(state, BASE, batch)

  before = signal.getsignal(number)
  with pytest.raises(loop.Interrupted) as stopped:
    fit(tmp_path, 12, step_fn=signalled)
  assert stopped.value.code == 143
  assert 'step 7' in stopped.value.message and str(tmp_path) in stopped.value.message
  assert (tmp_path / 'checkpoints' / '7').is_dir()
  assert signal.getsignal(number) is before
  seen = Stream()
  check_same(fit(tmp_path, 12, stream=seen), tmp_path, whole)
  assert seen.place == 12


@pytest.mark.parametrize('place', ['step', 'evaluation'])
def test_a_signal_at_the_very_end_is_heard_too(whole, tmp_path, place):
  """Or the stages after this one would run as if it had never come."""

  def signalled(state, batch):
    if place == 'step' and state.step == 11:
      os.kill(os.getpid(), signal.SIGTERM)
    return UPDATE(state, BASE, batch)

  def evaluated(state):
    if place == 'evaluation' and state.step == 12:
      os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(state)

  with pytest.raises(loop.Interrupted, match='143') as stopped:
    fit(tmp_path, 12, step_fn=signalled, evaluate=evaluated)
  assert 'step 12' in stopped.value.message
  check_same(fit(tmp_path, 12), tmp_path, whole)


def test_a_finished_run_is_left_alone(whole, tmp_path):
  fit(tmp_path, 12)

  def forbidden(state, batch):
    raise AssertionError('expected no step of a finished run')

  state, result = fit(tmp_path, 12, step_fn=forbidden)
  tiny.equal(state, whole[0])
  assert result['score'] == whole[1]['score']


@pytest.mark.parametrize('bad, good', [(7, 'step 4 in'), (2, 'none yet')])
def test_nan_stops_the_run_and_names_the_last_good_checkpoint(tmp_path, bad, good):
  with pytest.raises(FloatingPointError) as error:
    fit(tmp_path, 12, stream=Stream(bad=(bad,)))
  assert good in str(error.value) and 'learning rate' in str(error.value)
  assert str(tmp_path) in str(error.value) or good == 'none yet'
  saved = {p.name for p in (tmp_path / 'checkpoints').glob('*')}
  assert saved == ({'4'} if bad == 7 else set())


def test_nan_is_found_before_a_checkpoint_is_written(tmp_path):
  """Though nothing is logged for long: an evaluation and a save look at the steps before them."""
  with pytest.raises(FloatingPointError):
    fit(tmp_path, 12, stream=Stream(bad=(3,)), log_every_steps=100)
  assert not list((tmp_path / 'checkpoints').glob('*'))


def test_a_truncated_checkpoint_is_passed_over_with_a_warning(whole, tmp_path, caplog):
  fit(tmp_path, 8)
  files = [p for p in (tmp_path / 'checkpoints' / '8').rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  check_same(fit(tmp_path, 12), tmp_path, whole)
  assert 'passing over the checkpoint of step 8' in caplog.text
  assert rows(tmp_path) == whole[2]


def test_a_run_of_other_settings_is_refused(tmp_path):
  fit(tmp_path, 4)
  with pytest.raises(MismatchError, match='rank') as error:
    fit(tmp_path, 8, meta={**META, 'rank': 16})
  assert '8' in str(error.value) and '16' in str(error.value)


def test_a_run_that_was_saved_under_former_names_goes_on(tmp_path):
  fit(tmp_path, 4)
  now, former = {**META, 'rank': 16}, META['rank']
  fit(tmp_path, 8, meta=now, renamed=lambda meta: meta | (
    {'rank': 16} if meta['rank'] == former else {}))
  with pytest.raises(MismatchError, match='rank'):  # what it has saved since has today's names
    fit(tmp_path, 12)


def test_the_best_state_is_returned_where_a_metric_says_which(tmp_path):
  """The score is best at step 4 of this run, and falls from there."""

  def peaked(state):
    return {'score': -abs(float(state.step) - 4.0)}

  state, result = fit(tmp_path, 12, evaluate=peaked, best_metric='score', keep_last=1)
  assert state.step == 4 and result['score'] == 0.0
  assert (tmp_path / 'checkpoints' / '4').is_dir()
  again, result = fit(tmp_path, 12, evaluate=peaked, best_metric='score', keep_last=1)
  tiny.equal(again, state)
  assert result['score'] == 0.0


def test_metrics_are_means_over_the_steps_between_two_logs(whole):
  logged = [r for r in whole[2] if 'train/loss' in r]
  assert [r['step'] for r in logged] == [2, 4, 6, 8, 10, 12]
  assert [r['step'] for r in whole[2] if 'dev/score' in r] == [0, 4, 8, 12]
  state, stream, seen = fresh(), Stream(), []
  for _ in range(2):
    state, metrics = UPDATE(state, BASE, next(stream))
    seen.append(float(metrics['loss']))
  assert logged[0]['train/loss'] == pytest.approx(np.mean(seen), rel=1e-6)


def test_keys_and_structure_survive_the_way_to_arrays_and_back():
  state = fresh()
  tree = loop.to_arrays(state)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))
  tiny.equal(loop.from_arrays(fresh(), jax.device_get(tree)), state)


def test_the_learning_rate_of_the_last_update_is_logged(tmp_path):
  rate = optim.schedule('cosine', 0.05, steps=20, warmup_steps=3)
  fit(tmp_path, 4, learning_rate=rate)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  logged = {row['step']: row['train/learning_rate'] for row in lines if 'train/loss' in row}
  assert logged == {2: pytest.approx(0.05 * 2 / 4), 4: pytest.approx(float(rate(3)))}
  assert logged[4] == pytest.approx(0.05)


@pytest.mark.parametrize('keep_best', [True, False])
def test_a_run_ends_where_nothing_gets_better(tmp_path, keep_best):
  """Best at step 4; two evaluations after it no better one has come. Again: nothing is left."""

  def peaked(state):
    return {'score': -abs(float(state.step) - 4.0)}

  options = dict(evaluate=peaked, best_metric='score', patience=2, keep_best=keep_best)
  state, result = fit(tmp_path, 40, **options)
  assert [r['step'] for r in rows(tmp_path) if 'dev/score' in r] == [0, 4, 8, 12]
  assert state.step == (4 if keep_best else 12) and result['score'] == (0.0 if keep_best else -8.0)
  again, _ = fit(tmp_path, 40, **options)
  tiny.equal(again, state)


def test_nan_is_never_the_best(tmp_path):
  values = {0: float('nan'), 4: 1.0, 8: float('nan'), 12: 0.5}
  state, result = fit(tmp_path, 12, evaluate=lambda state: {'score': values[int(state.step)]},
                      best_metric='score')
  assert state.step == 4 and result['score'] == 1.0


def test_what_is_logged_is_watched_and_what_is_evaluated_is_shown(tmp_path):
  watched, shown = [], []
  fit(tmp_path, 8, watch=lambda step, values: watched.append((step, sorted(values))),
      show=lambda writer, step: (shown.append(step), writer.texts(
        'texts.jsonl', step, [{'prompt': 'a | b', 'reward': 0.5}])))
  assert [step for step, _ in watched] == [2, 4, 6, 8] and 'loss' in watched[0][1]
  assert shown == [0, 4, 8]
  lines = [json.loads(line) for line in (tmp_path / 'texts.jsonl').read_text().splitlines()]
  assert lines[1] == {'step': 4, 'prompt': 'a | b', 'reward': 0.5}


def test_python_is_two_steps_ahead_of_the_device_at_most(tmp_path):
  ended = []

  class Late(float):
    def block_until_ready(self):
      ended.append(self)
      return self

  def step_fn(state, batch):
    number = len(ahead) + 1
    ahead.append(number - 1 - len(ended))
    return state.replace(step=state.step + 1), {'loss': Late(number), 'finite': 1.0}

  ahead = []
  fit(tmp_path, 12, step_fn=step_fn, evaluate=None, log_every_steps=12)
  assert max(ahead) == loop.AHEAD
  assert ended == sorted(ended)  # the oldest first


def test_a_step_takes_as_long_beside_an_evaluation_as_elsewhere(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(loop.time, 'perf_counter', lambda: now[0])

  def step_fn(state, batch):
    now[0] += 1
    return UPDATE(state, BASE, batch)

  def slow(state):
    now[0] += 100
    return evaluate(state)

  _, result = fit(tmp_path, 12, step_fn=step_fn, evaluate=slow, evaluate_every_steps=6)
  rows = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
  seconds = [row['train/step_seconds'] for row in rows if 'train/step_seconds' in row]
  assert seconds == [1.0] * 6 and result['step_seconds'] == 1.0
