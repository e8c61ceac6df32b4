"""The embedded task `toy`: coffee orders from a grammar, with a gold reward and a known optimum.

A user orders drinks (size, milk, extra, count), perhaps with a correction; the agent's next turn
is the call of `add_order_item` with the slots that were mentioned last, or, if the drink or the
size is missing, the question for it. Demonstrations come from a hurried demonstrator (`people`):
their mean gold reward is about 0.59, and their mode is often wrong. Preferences, thumbs, rankings
and ratings are sampled from the gold reward. Everything follows from `seed`.

Splits: the first user's turn of a dialogue is its group and decides its split
(`dialogue.split_of`), so that no order text, and no prefix of a context, is in two splits.
"""

import json
import random
from collections.abc import Iterator

from perl.data.examples import (
  Demonstration,
  Document,
  Example,
  Labelled,
  Preference,
  Prompt,
  Ranked,
  Rated,
  check_request,
)
from perl.data.sets import _toy_grammar as grammar
from perl.data.sets import _toy_people as people
from perl.data.text import dialogue

SIZES = {
  'document': {'train': 6000, 'dev': 300, 'test': 300},
  'demonstration': {'train': 4000, 'dev': 300, 'test': 300},
  'preference': {'train': 16000, 'dev': 600, 'test': 600},
  'labelled': {'train': 16000, 'dev': 600, 'test': 600},
  'ranked': {'train': 8000, 'dev': 300, 'test': 300},
  'rated': {'train': 16000, 'dev': 600, 'test': 600},
  'prompt': {'train': 4000, 'dev': 300, 'test': 300},
}
KINDS = tuple(SIZES)
OPTIMUM = 1.  # gold_reward of best_response, for every prompt
TEMPERATURE = .05  # noise of all raters, in units of the gold reward
RESPONSES = 4  # to the prompt of a ranking
THRESHOLD = .7  # the gold reward at which thumbs up and down are equally likely


def load(split: str, kind: str, *, mirror: str = '', data_dir: str = '', seed: int = 0) -> list:
  """Generates the examples of one split and kind; `mirror` and `data_dir` are not needed.

  Raises ValueError for an unknown kind or split.
  """
  return list(stream(split, kind, mirror=mirror, data_dir=data_dir, seed=seed))


def stream(
  split: str, kind: str, *, mirror: str = '', data_dir: str = '', seed: int = 0
) -> Iterator[Example]:
  """The examples of `load`, in turn."""
  del mirror, data_dir
  check_request('toy', split, kind, KINDS)
  rng = random.Random(f'toy/{seed}/{split}/{kind}')
  count = 0
  while count < SIZES[kind][split]:
    scene = grammar.sample_scene(rng)
    group = dialogue.split_key(scene)
    if dialogue.split_of(group) == split:
      count += 1
      yield _MAKERS[kind](rng, scene, group)


def gold_reward(prompt: str, response: str) -> float:
  """How right a response is, in [0, 1]; 1 exactly for `best_response(prompt)`.

  With the wanted slots W and the called slots C, hits H = |W & C| as (slot, value) pairs:
    call wanted:      reward = brevity * (0.1 + 0.9 F1^2),   F1 = 2 H / (|W| + |C|)
    question wanted:  reward = 1 for it, 0.3 for another question, brevity * 0.3 F1^2 for a call
  and 0 for text that is neither. brevity = len(compact call) / len(response) <= 1. F1 falls with
  forgotten, wrong and invented slots alike; its square keeps half-right calls well below 1.
  """
  mentions = grammar.listen(prompt)
  called = _called(response)
  lacking = grammar.missing(mentions)
  if called is None:
    if not lacking or response.strip() not in grammar.QUESTIONS.values():
      return 0.
    return 1. if response.strip() == grammar.QUESTIONS[lacking] else .3
  wanted = dict(mentions)
  hits = sum(called.get(slot) == value for slot, value in wanted.items())
  f1 = 2. * hits / max(len(wanted) + len(called), 1)
  compact = json.dumps({grammar.API: called}, separators=(',', ':'), ensure_ascii=False)
  brevity = min(1., len(compact) / len(response))
  return brevity * (.3 * f1 ** 2 if lacking else .1 + .9 * f1 ** 2)


def best_response(prompt: str) -> str:
  """The response whose gold reward is `OPTIMUM`."""
  return dialogue.render([], grammar.best_turn(grammar.listen(prompt)))[1]


def response_metrics(prompt: str, response: str, reference: str) -> dict[str, float]:
  """Three figures in [0, 1]: `gold_reward`, `exact_match`, `valid_api_call`.

  exact_match: the response is the best one, up to the order of the slots and white space;
    `reference` is a demonstration, which may be wrong, and is not compared with.
  valid_api_call: the response could be carried out: it calls the API with known slots and values,
    or is one of the questions (a reply is valid too, as for the Taskmaster datasets).
  """
  del reference
  same = dialogue.parse_response(response) == dialogue.parse_response(best_response(prompt))
  return {'gold_reward': gold_reward(prompt, response), 'exact_match': float(same),
          'valid_api_call': float(_valid(response))}


def _valid(response: str) -> bool:
  called = _called(response)
  if called is None:
    return response.strip() in grammar.QUESTIONS.values()
  return bool(called) and all(value in grammar.VALUES.get(slot, ())
                              for slot, value in called.items())


def _called(response: str) -> dict | None:
  """The arguments of a well-formed call of the API, else None."""
  api = dialogue.parse_response(response).get('api')
  arguments = api.get(grammar.API) if isinstance(api, dict) and len(api) == 1 else None
  return arguments if isinstance(arguments, dict) else None


def _cut(rng: random.Random, scene: list[dict]) -> list[dict]:
  """A context: the scene up to one of its user's turns."""
  return scene[:rng.randrange(1, len(scene) + 1, 2)]


def _situation(rng: random.Random, scene: list[dict]) -> tuple[list[dict], str, list]:
  context = _cut(rng, scene)
  prompt, _ = dialogue.render(context, None)
  return context, prompt, grammar.listen(prompt)


def _document(rng: random.Random, scene: list[dict], group: str) -> Document:
  """A whole dialogue with the demonstrator, who may order before the scene is over."""
  for end in range(1, len(scene) + 1, 2):
    prompt, _ = dialogue.render(scene[:end], None)
    turn = people.demonstrate(rng, grammar.listen(prompt))
    if 'api' in turn:
      break
  return Document(dialogue.render_document([*scene[:end], turn]), group=group)


def _demonstration(rng: random.Random, scene: list[dict], group: str) -> Demonstration:
  context, prompt, mentions = _situation(rng, scene)
  _, response = dialogue.render(context, people.demonstrate(rng, mentions))
  return Demonstration(prompt, response, group=group)


def _candidates(rng: random.Random, scene: list[dict], count: int) -> tuple[str, list[str]]:
  """(a prompt, so many different responses to it)."""
  context, prompt, mentions = _situation(rng, scene)
  responses: list[str] = []
  while len(responses) < count:
    response = people.candidate(rng, context, mentions)
    responses += [response] if response not in responses else []
  return prompt, responses


def _preference(rng: random.Random, scene: list[dict], group: str) -> Preference:
  """A pair; its margin is the difference that the rater saw, in units of the gold reward."""
  prompt, (first, second) = _candidates(rng, scene, 2)
  difference = gold_reward(prompt, first) - gold_reward(prompt, second)
  seen = people.seen(rng, difference, TEMPERATURE)
  if seen <= 0:
    first, second = second, first
  return Preference(prompt, first, second, abs(seen), group=group)


def _ranked(rng: random.Random, scene: list[dict], group: str) -> Ranked:
  prompt, responses = _candidates(rng, scene, RESPONSES)
  golds = [gold_reward(prompt, response) for response in responses]
  order = people.ranks(rng, golds, TEMPERATURE)
  return Ranked(prompt, tuple(responses[i] for i in order), group=group)


def _rated(rng: random.Random, scene: list[dict], group: str) -> Rated:
  """The gold reward as a rater saw it, who gives thumbs up from the threshold on."""
  prompt, (response,) = _candidates(rng, scene, 1)
  seen = people.seen(rng, gold_reward(prompt, response), TEMPERATURE)
  return Rated(prompt, response, seen, group=group)


def _labelled(rng: random.Random, scene: list[dict], group: str) -> Labelled:
  context, prompt, mentions = _situation(rng, scene)
  response = people.candidate(rng, context, mentions)
  difference = gold_reward(prompt, response) - THRESHOLD
  label = float(people.prefers(rng, difference, TEMPERATURE))
  return Labelled(prompt, response, label, group=group)


def _prompt(rng: random.Random, scene: list[dict], group: str) -> Prompt:
  return Prompt(_situation(rng, scene)[1], group=group)


_MAKERS = {'document': _document, 'demonstration': _demonstration, 'preference': _preference,
           'labelled': _labelled, 'ranked': _ranked, 'rated': _rated, 'prompt': _prompt}
