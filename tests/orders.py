"""A tiny mirror of Taskmaster's public home, written by hand."""

import json
import pathlib

ORDERS = [f'{drink} number {n} please' for drink in ('latte', 'mocha', 'tea') for n in range(20)]


def dialog(number, order):
  call = [('api_call', 'get_menu_items'), ('request', json.dumps({'query': order}))]
  response = [('api_response', 'get_menu_items'),
              ('response', json.dumps({'menu_items': [{'menu_item_id': 'tea-7', 'name': 'Tea'}]}))]
  annotations = [{'name': name, 'value': value, 'context': 'c'} for name, value in call + response]
  return {'conversation_id': f'dialog-{number}', 'utterances': [
    {'speaker': 'user', 'text': order, 'annotations': annotations},
    {'speaker': 'assistant', 'text': 'which size?', 'annotations': []}]}


def judged(number, turns, generation, reward):
  return {'conversation_id': f'judged-{number}', 'context': json.dumps(turns),
          'generation': json.dumps(generation), 'reward': reward}


def judged_rows():
  """For each order, two turns in one context (one up, one down, which is repeated), and a later."""
  rows = []
  for order in ORDERS:
    context = [{'role': 'agent', 'text': 'Welcome!'}, {'role': 'user', 'text': order}]
    good = {'role': 'agent', 'api': {'find_movies': {'location': order}}}
    bad = {'role': 'agent', 'text': 'no'}
    later = [*context, good, {'role': 'api', 'response': {'find_movies': {'name.movie': ['Nope']}}}]
    rows += [(context, good, 1.0), (context, bad, 0.0), (context, bad, 0.0), (later, bad, 0.0)]
  return [judged(i, *row) for i, row in enumerate(rows)]


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(rows))


def write_mirror(root: pathlib.Path) -> pathlib.Path:
  """Two of the eight files of each folder."""
  dialogs = [dialog(i, f'hello, {order}') for i, order in enumerate(ORDERS)]
  dialogs.append(dialog(len(ORDERS), ORDERS[0]))  # opens like a judged one: to be left out
  for folder, stem, rows in (('TM-4-2024/data', 'data', dialogs),
                             ('TM-4-2024/reward', 'reward', judged_rows()),
                             ('TM-3-2020/reward', 'reward', judged_rows())):
    half = len(rows) // 2
    write(root / folder / f'{stem}_00.json', rows[:half])
    write(root / folder / f'{stem}_01.json', rows[half:])
  return root
