"""The language of the toy coffee counter: what can be ordered, how it is said, what it means.

A *mention* is a pair (slot, value). A customer mentions slots in order, and a later mention of a
slot replaces an earlier one ('a small latte, no, make it large'), so that
`dict(mentions)` is what is wanted and `dict(reversed(mentions))` is what was said first.
The words of different slots are disjoint, hence `listen` needs no more than a dictionary.
"""

import random
import re

Mentions = list[tuple[str, str]]

API = 'add_order_item'
VALUES = {
  'drink': ('latte', 'mocha', 'chai', 'cocoa', 'tea', 'cortado'),
  'size': ('small', 'medium', 'large'),
  'milk': ('oat', 'soy', 'whole', 'rice'),
  'extra': ('vanilla', 'caramel', 'honey', 'mint'),
  'count': ('2', '3', '4'),
}
SPOKEN = {'2': 'two', '3': 'three', '4': 'four'}
QUESTIONS = {'drink': 'which drink?', 'size': 'what size?'}  # the slots that every call needs

OPENINGS = ('', '', 'hi, ', 'can I get ', 'I want ')
CORRECTIONS = ('. no, {}', '. sorry, {}', ', or rather {}')
MENTIONED = {'milk': .6, 'extra': .6, 'count': .4}  # probability that an order has the slot
MISSING = .3  # probability that the first turn lacks its drink or its size
CORRECTED = .4  # probability that the first turn ends in a correction

_MEANING = {word: (slot, value)
            for slot, values in VALUES.items() for value in values
            for word in (SPOKEN.get(value, value), value + 's' if slot == 'drink' else value)}
_NOT_USER = re.compile(r'<\|(?:agent|api)\|>[^<]*')


def listen(prompt: str) -> Mentions:
  """The slots that the user's turns of a rendered prompt mention, in order; [] for other text."""
  words = re.findall(r'\w+', _NOT_USER.sub(' ', prompt).lower())
  return [_MEANING[word] for word in words if word in _MEANING]


def call(slots: dict[str, str]) -> dict:
  """The agent's turn that orders `slots`, in the order of `VALUES`."""
  return {'role': 'agent', 'api': {API: {slot: slots[slot] for slot in VALUES if slot in slots}}}


def ask(slot: str) -> dict:
  """The agent's turn that asks for a required slot."""
  return {'role': 'agent', 'text': QUESTIONS[slot]}


def missing(mentions: Mentions) -> str:
  """The first required slot that was not mentioned, or ''."""
  return next((slot for slot in QUESTIONS if slot not in dict(mentions)), '')


def best_turn(mentions: Mentions) -> dict:
  """The right agent's turn: ask for a missing required slot, else order the latest mentions."""
  lacking = missing(mentions)
  return ask(lacking) if lacking else call(dict(mentions))


def sample_scene(rng: random.Random) -> list[dict]:
  """A first user's turn and, if it lacks a required slot, the question and the user's answer."""
  order = {slot: rng.choice(values) for slot, values in VALUES.items()
           if rng.random() < MENTIONED.get(slot, 1.)}
  lacking = rng.choice(tuple(QUESTIONS)) if rng.random() < MISSING else ''
  slots = {slot: value for slot, value in order.items() if slot != lacking}
  text = rng.choice(OPENINGS) + _phrase(rng, slots)
  if rng.random() < CORRECTED:
    slot = rng.choice(tuple(slots))
    other = rng.choice([value for value in VALUES[slot] if value != slots[slot]])
    text += rng.choice(CORRECTIONS).format(_correction(slot, other))
  turns = [{'role': 'user', 'text': text}]
  if lacking:
    answer = rng.choice(('{}', '{} please')).format(order[lacking])
    turns += [ask(lacking), {'role': 'user', 'text': answer}]
  return turns


def _phrase(rng: random.Random, slots: dict[str, str]) -> str:
  plural = 's' if 'count' in slots else ''
  head = ' '.join((SPOKEN.get(slots.get('count', ''), 'a'), *filter(None, [slots.get('size')]),
                   slots.get('drink', 'drink') + plural))
  tail = [part for part in (slots.get('milk', '') and slots['milk'] + ' milk', slots.get('extra'))
          if part]
  rng.shuffle(tail)
  return f'{head} with {" and ".join(tail)}' if tail else head


def _correction(slot: str, value: str) -> str:
  return {'milk': f'{value} milk', 'count': f'make that {SPOKEN.get(value)}'}.get(slot, value)
