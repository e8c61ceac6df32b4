"""The noisy people of the toy task: a hurried demonstrator and a rater who is not always right.

The demonstrator's slips are not only rare noise: where a slip's probability is above 1/2, the
mistake is the *likeliest* response, so that neither sampling from a perfectly fitted SFT policy nor
taking its mode comes near the optimum. What is right is only in the rater's labels.
"""

import math
import random
from collections.abc import Sequence

from perl.data.sets import _toy_grammar as toy_grammar
from perl.data.text import dialogue

GUESSES = .6  # a required slot is missing: fills in any value, and does not ask
IGNORES = .6  # the order was corrected: keeps what was said first
FORGETS = {'drink': 0., 'size': .1, 'milk': .3, 'extra': .55, 'count': .55}  # leaves a slot out
CONFUSES = .08  # any slot: another value
INVENTS = {'milk': .15, 'extra': .15, 'count': .05}  # a slot that nobody mentioned
NEEDLESS = .03  # nothing is missing: asks all the same
EDITED = .5  # share of compared responses that are edits, not demonstrations
# Share of the edits that become a question. Unless raters see some that nobody needed, the reward
# model never learns to dislike them, and RL finds the policy that only asks (gold falls to 0.13).
ASKED = .2
BROKEN = .05  # share of compared responses that are cut off, hence no valid call


def demonstrate(rng: random.Random, mentions: toy_grammar.Mentions) -> dict:
  """One agent's turn of the hurried demonstrator."""
  first = rng.random() < IGNORES
  heard = dict(reversed(mentions)) if first else dict(mentions)
  lacking = toy_grammar.missing(mentions)
  if lacking and rng.random() >= GUESSES:
    return toy_grammar.ask(lacking)
  if not lacking and rng.random() < NEEDLESS:
    return toy_grammar.ask(rng.choice(tuple(toy_grammar.QUESTIONS)))
  slots = {}
  for slot, values in toy_grammar.VALUES.items():
    if slot in heard and rng.random() >= FORGETS[slot]:
      slots[slot] = rng.choice(values) if rng.random() < CONFUSES else heard[slot]
    elif slot not in heard and (slot == lacking or rng.random() < INVENTS.get(slot, 0.)):
      slots[slot] = rng.choice(values)
  return toy_grammar.call(slots)


def edit(rng: random.Random, mentions: toy_grammar.Mentions) -> dict:
  """The best turn, a question, or what was mentioned with one or two slots set or left out."""
  count = rng.choice((0, 1, 1, 2))
  if not count:
    return toy_grammar.best_turn(mentions)
  if rng.random() < ASKED:
    return toy_grammar.ask(rng.choice(tuple(toy_grammar.QUESTIONS)))
  slots = dict(mentions)
  for _ in range(count):
    slot = rng.choice(tuple(toy_grammar.VALUES))
    if slot in slots and rng.random() < .5:
      del slots[slot]
    else:
      slots[slot] = rng.choice(toy_grammar.VALUES[slot])
  return toy_grammar.call(slots)


def candidate(rng: random.Random, context: list[dict], mentions: toy_grammar.Mentions) -> str:
  """A response to compare: a demonstration, an edit of the best response, or a broken one."""
  make = edit if rng.random() < EDITED else demonstrate
  _, response = dialogue.render(context, make(rng, mentions))
  if rng.random() < BROKEN:
    return response[:rng.randrange(1, len(response))]
  return response


def seen(rng: random.Random, gold: float, temperature: float) -> float:
  """What a rater sees of a gold reward, or of a difference of two: with logistic noise.

  `temperature` > 0 is the noise's scale, in units of the gold reward.
  """
  u = rng.random()
  return gold + temperature * (math.log1p(-u) - math.log(u or 1e-300))


def prefers(rng: random.Random, difference: float, temperature: float) -> bool:
  """A Bradley-Terry choice: True with probability sigmoid(difference / temperature).

  `difference` is g1 - g2 for a pair of responses (Bradley and Terry, 1952), and g - threshold for
  a thumb; the rater takes what is `seen` to be above 0.
  """
  return seen(rng, difference, temperature) > 0


def ranks(rng: random.Random, golds: Sequence[float], temperature: float) -> list[int]:
  """A Plackett-Luce ranking (Plackett 1975): which response comes first, which second, ...

  The best of those that are left is i with probability exp(g_i / T) / sum_j exp(g_j / T), so that
  each pair is in the order of a Bradley-Terry choice. Drawn by sorting g_i / T + Gumbel noise.
  """
  noisy = [gold / temperature - math.log(-math.log(rng.random() or 1e-300)) for gold in golds]
  return sorted(range(len(golds)), key=noisy.__getitem__, reverse=True)
