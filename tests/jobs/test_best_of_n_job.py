"""Best-of-n of a finished run: sampled, judged, and judged again by what another run has."""

import json

import jax
import numpy as np
import pytest
import toyrun as run
from test_resume import from_run

from perl.data.sets import toy
from perl.jobs import _responses as responses
from perl.jobs import best_of_n
from perl.jobs._artefacts import Artefacts
from perl.jobs._run import Run
from perl.jobs._scoring import Answer, Scorer
from perl.train import metrics


@pytest.fixture(scope='module')
def sampled(toyrun, tmp_path_factory):
  """(the stage's folder, its result)."""
  folder = tmp_path_factory.mktemp('best') / 'best_of_n'
  with run.small_world():
    return folder, best_of_n.run(from_run(toyrun, best_of_n__samples=6), str(folder))


def test_curves_are_those_of_the_samples_it_leaves(sampled):
  folder, found = sampled
  rows, scores = (json.loads((folder / f'{n}.json').read_text()) for n in ('samples', 'scores'))
  proxy, gold = np.array(scores['reward']), np.array(scores['gold_reward'])
  assert proxy.shape == gold.shape == (16, 6) and [len(row['texts']) for row in rows] == [6] * 16
  again = [[toy.gold_reward(row['prompt'], text) for text in row['texts']] for row in rows]
  np.testing.assert_allclose(gold, again)
  lines = metrics.read_jsonl(folder / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [1, 2, 4, 6]
  assert lines[0]['dev/reward'] == pytest.approx(proxy.mean()) == pytest.approx(
    found['reward_start'])
  assert lines[-1]['dev/reward'] == pytest.approx(proxy.max(1).mean()) and found['n'] == 6
  assert found['gold_reward'] == lines[-1]['dev/gold_reward']


def test_others_judge_the_same_samples_and_agree_where_they_are_the_same(
    sampled, toyrun, tmp_path):
  config = from_run(toyrun, best_of_n__sampled=str(sampled[0]), best_of_n__samples=2)
  with run.small_world():
    found = best_of_n.run(config, str(tmp_path / 'best_of_n'))
  clock = ('wall_seconds', 'peak_memory_bytes')
  assert {k: v for k, v in found.items() if k not in clock} == {
    k: v for k, v in sampled[1].items() if k not in clock}


def test_samples_to_other_prompts_are_refused(sampled, toyrun, tmp_path):
  config = from_run(toyrun, best_of_n__sampled=str(sampled[0]), evaluate__max_examples=4)
  with run.small_world(), pytest.raises(ValueError, match='expected samples to the 4 prompts'):
    best_of_n.run(config, str(tmp_path / 'best_of_n'))


@pytest.fixture(scope='module')
def judged(toyrun):
  """(artefacts, anchor, the adapters that judge) of the finished run."""
  config = from_run(toyrun, data__max_response_tokens=64)  # no response is cut
  artefacts = Artefacts(Run(config, str(toyrun / 'evaluate'), 'evaluate'))
  with run.small_world():
    anchor = artefacts.anchor()
    policy = artefacts.new_adapter(anchor, artefacts.run.key)
    reference = artefacts.reference(anchor, policy)
    return artefacts, anchor, {'reference': reference, **responses.judges(artefacts, anchor)}


def test_a_text_has_the_score_of_the_example_it_is_in(judged):
  artefacts, anchor, frozen = judged
  with run.small_world():
    pairs = artefacts.data.examples('test', 'preference')
    scorer = Scorer(artefacts.run, artefacts.data, anchor)
    expected = scorer.predict(frozen['reward'], pairs)[:, 0]
    rewards = responses.rewards(artefacts.run, artefacts.data, anchor, frozen)
    found = scorer.of_answers(rewards, pairs, [Answer(p.chosen, True) for p in pairs])
  known = np.isfinite(expected)  # pairs of one truncated text are left out
  assert known.sum() > 8
  np.testing.assert_allclose(found[known], expected[known], rtol=1e-4, atol=1e-5)


def test_a_sample_has_the_score_that_it_had_when_it_was_sampled(judged):
  artefacts, anchor, frozen = judged
  with run.small_world():
    prompts = artefacts.data.answered('test')
    sampled = responses.respond(artefacts.run, artefacts.data, anchor, frozen['reference'], prompts,
                                jax.random.key(3), frozen=frozen)
    scorer = Scorer(artefacts.run, artefacts.data, anchor)
    rewards = responses.rewards(artefacts.run, artefacts.data, anchor, frozen)
    scores = scorer.of_answers(rewards, prompts, [
      Answer(text, bool(done), tuple(ids)) for text, done, ids in zip(
        sampled.texts, sampled.finished, sampled.tokens)])
  assert not sampled.finished.all()
  np.testing.assert_allclose(scores, sampled.scores, rtol=1e-3, atol=1e-4)


def test_a_text_that_was_cut_is_judged_without_an_end(judged):
  """By text as by its ids; with an end it is worth something else."""
  artefacts, anchor, frozen = judged
  with run.small_world():
    pairs = artefacts.data.examples('test', 'preference')
    texts = [pair.chosen[:12] for pair in pairs]  # some longer than what the model was trained on
    scorer = Scorer(artefacts.run, artefacts.data, anchor)
    rewards = responses.rewards(artefacts.run, artefacts.data, anchor, frozen)
    of = lambda answers: scorer.of_answers(rewards, pairs, answers)
    ids = [tuple(row) for row in artefacts.data.tokenizer.encode_batch(texts)]
    eos = artefacts.data.tokenizer.eos_id
    cut, ended = (of([Answer(text, done) for text in texts]) for done in (False, True))
    np.testing.assert_allclose(cut, of([Answer(t, False, i) for t, i in zip(texts, ids)]),
                               rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ended, of([Answer(t, True, (*i, eos)) for t, i in zip(texts, ids)]),
                               rtol=1e-3, atol=1e-4)
  assert np.abs(cut - ended).max() > 1e-3


def test_samples_of_a_prompt_are_its_own(judged):
  """The likeliest response is the same however often it is asked for; filler rows are nobody's."""
  artefacts, anchor, frozen = judged
  with run.small_world():
    prompts = artefacts.data.answered('test')[:12]
    once, twice = (responses.respond(
      artefacts.run, artefacts.data, anchor, frozen['reference'], prompts, jax.random.key(0),
      temperature=0.0, frozen=frozen, samples=n) for n in (1, 2))
  assert len(set(once.texts)) > 1
  assert twice.texts == [text for text in once.texts for _ in range(2)]
  np.testing.assert_allclose(twice.scores, np.repeat(once.scores, 2), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(twice.logprobs, np.repeat(once.logprobs, 2), rtol=1e-3, atol=1e-3)
  assert (once.logprobs < 0).all() and np.abs(twice.kl).max() < 1e-3


def test_the_dev_evaluation_of_rl_has_monitors(toyrun):
  lines = [row for row in run.rows(toyrun / 'rl') if 'dev/kl' in row]
  assert all({'dev/entropy', 'dev/repetition', 'dev/distinct_2'} <= row.keys() for row in lines)
  trained = [row['train/entropy'] for row in run.rows(toyrun / 'rl') if 'train/entropy' in row]
  # Both in nats a token: at most log 300, of the vocabulary, and not far from one another.
  assert all(0 < row['dev/entropy'] < np.log(300) for row in lines)
  assert lines[0]['dev/entropy'] == pytest.approx(trained[0], rel=0.5)
