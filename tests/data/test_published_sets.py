"""Datasets from their public homes, on miniature mirrors: kinds, splits, what is left out."""

import functools
import gzip
import json
import os
import pathlib
import re

import pytest
from etils import epath

from perl import choices
from perl.data import sets
from perl.data.examples import KINDS, SPLITS
from perl.data.sets import (
  e2e,
  gsm8k,
  gsm8k_solutions,
  hh_rlhf,
  hh_rlhf_test,
  reddit_tldr,
  shp,
  taskmaster_coffee,
)
from perl.data.sources import pins, records, tfds
from perl.data.text import dialogue

HERE = pathlib.Path(__file__).resolve()
SHARED = HERE.parents[3] / 'shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='no published files here')
DATASETS = [
  module for module in map(functools.partial(choices.find, sets.SETS), choices.names(sets.SETS))
  if hasattr(module, 'SOURCE') and isinstance(module.KINDS, dict)]
"""Those whose records are rows in the usual layouts."""
named = pytest.mark.parametrize('dataset', DATASETS, ids=lambda module: module.SOURCE.name)


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = '\n'.join(map(json.dumps, rows)) + '\n'
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())


def problem(number):
  return {'question': f'Tom has {number} apples and buys 1,000 more. How many?',
          'answer': f'He has {number}+1000=<<{number}+1000={number + 1000}>>{number + 1000}.\n'
                    f'#### {number + 1000:,}'}


def solved(number):
  """Two of the four are right."""
  right = {'solution': f'<<{number}+1000={number + 1000}>>\nA: {number + 1000}', 'is_correct': True}
  wrong = {'solution': 'A: 7', 'is_correct': False}
  return {'question': problem(number)['question'], 'ground_truth': right['solution'],
          **dict(zip(gsm8k_solutions.MODELS, (right, wrong, wrong, right)))}


def comparison(opening, *, early=False):
  head = f'\n\nHuman: {opening}\n\nAssistant: Which one?\n\nHuman: The red one.'
  other = head.replace('Which one?', 'Say which.') if early else head
  return {'chosen': f'{head}\n\nAssistant: Here it is.', 'rejected': f'{other}\n\nAssistant: No.'}


def post(name):
  return {'id': name, 'subreddit': 'cooking', 'title': 'Burnt toast', 'post': f'I burnt {name}.',
          'summary': 'Toast burnt.'}


def choice(name, split, choice=1):
  info = {key: value for key, value in post(name).items() if key != 'summary'}
  return {'info': info, 'summaries': [{'text': ' Long.'}, {'text': 'Short.'}], 'choice': choice,
          'split': split, 'worker': 'w', 'batch': 'b', 'extra': {'confidence': 7}}


def comments(name, label):
  return {'post_id': name, 'domain': 'x', 'history': f'How to {name}?', 'human_ref_A': 'Like A.',
          'human_ref_B': 'Like B.', 'labels': label, 'score_ratio': 2.5}


@pytest.fixture
def home(tmp_path):
  """All of them, as their homes have them."""
  root = tmp_path / 'home'
  for name, numbers in (('train', range(60)), ('test', range(100, 110))):
    write(root / f'grade_school_math/data/{name}.jsonl', map(problem, numbers))
  for part in hh_rlhf.PARTS:
    opened = [comparison(f'{part} {i}') for i in range(60)]
    tested = [comparison('a test'), comparison('another', early=True),
              *(comparison(f'tested {i}') for i in range(20))]
    write(root / part / 'train.jsonl.gz', [*opened, comparison('A  TEST')])
    write(root / part / 'test.jsonl.gz', tested)
  write(root / gsm8k_solutions.FILE, map(solved, range(100, 120)))
  for name, count in (('trainset', 3), ('devset', 2), ('testset_w_refs', 2)):
    text = ''.join(f'"name[{name} {i}], food[""Thai""]","It is {name}, {j}."\n'
                   for i in range(count) for j in range(2))
    (root / f'{name}.csv').write_text('mr,ref\n' + text)
  for number, (name, split) in enumerate(
      (('train', 'train'), ('valid', 'valid1'), ('test', 'valid2')), start=3):
    write(root / f'datasets/tldr_3_filtered/{name}.jsonl', [post(f't3_{name}')])
    news = choice('t3_news', split)
    del news['info']['post']
    write(root / f'dataset/comparisons/batch{number}.json',
          [choice(f't3_{name}', split), news, choice(f't3_{name}', split, 0)])
  for part in shp.PARTS:
    for name in ('train', 'validation', 'test'):
      write(root / part / f'{name}.json', [comments(f'{name} {part}', i) for i in (0, 1)])
  return root


def load(dataset, home, split='train', kind='preference', **more):
  return dataset.load(split, kind, mirror=str(home), data_dir=str(home.parent / 'prepared'), **more)


@named
def test_every_kind_is_of_its_split(dataset, home):
  for kind in dataset.KINDS:
    groups = {}
    for split in SPLITS:
      examples = load(dataset, home, split, kind)
      assert examples and all(isinstance(example, KINDS[kind]) for example in examples)
      assert all(example.meta['source'].startswith(dataset.SOURCE.name) for example in examples)
      groups[split] = {example.group for example in examples}
      assert '' not in groups[split]
    assert not groups['train'] & groups['dev'] and not groups['test'] & (
      groups['train'] | groups['dev'])


@named
def test_a_kind_that_the_data_have_not(dataset, home):
  with pytest.raises(ValueError, match="expected a kind among .*; found 'ranked'"):
    load(dataset, home, kind='ranked')


@named
def test_a_malformed_row_is_named(dataset, home):
  for part in dataset.SOURCE.parts.values():
    for file in part.files:
      if (home / file).exists() and file.endswith('.csv'):
        (home / file).write_text('other\n1\n')
      elif (home / file).exists():
        write(home / file, [{'other': 1}])
  kind = next(iter(dataset.KINDS))
  with pytest.raises(ValueError, match=rf'{dataset.SOURCE.name}: .*KeyError.*, row 0 .*repair'):
    load(dataset, home, kind=kind)


@pytest.mark.parametrize('content, expected', [
  (b'{"a": 1}\n\n{"a": 2}\n', [{'a': 1}, {'a': 2}]), (b' [1, 2]', [1, 2]), (b'', []),
  (gzip.compress(b'{"a": 1}'), [{'a': 1}])], ids=['lines', 'array', 'empty', 'gzip'])
def test_files_are_told_by_their_content(content, expected, tmp_path):
  (tmp_path / 'a').write_bytes(content)
  assert tfds.read_rows(tmp_path / 'a') == expected


@pytest.mark.parametrize('content, found', [
  (b'{"a": 1}\n{"a":', 'a, line 2, found'), (b'[1, 2', 'a list in .*a, found .*Expecting'),
  (b'\xff', 'UTF-8 in .*a, found'), (b'{"a": "\\ud800"}', 'a, line 1, found .*surrogates'),
  (b'[' * 10**5, 'a list in .*a, found lists in lists'),
  (gzip.compress(b'{"a": 1}' * 99)[:-12], 'whole gzip file in .*a, found .*end-of-stream'),
  (gzip.compress(b'{"a": 1}' * 99)[:20] + b'\xff' * 20, 'whole gzip file in .*a, found')],
  ids=['row', 'array', 'bytes', 'half a character', 'depth', 'gzip', 'gzip inside'])
def test_a_file_cut_short_is_named(content, found, tmp_path):
  (tmp_path / 'a').write_bytes(content)
  with pytest.raises(ValueError, match=f'expected .*{found}.*(again|repair)'):
    tfds.read_rows(tmp_path / 'a')


def test_part_of_the_parts(home):
  some = load(hh_rlhf, home, parts=hh_rlhf.HARMLESS)
  every = load(hh_rlhf, home)
  assert 0 < len(some) < len(every)
  assert {example.meta['source'].split(',')[0] for example in some} == {'hh_rlhf/harmless-base'}
  with pytest.raises(ValueError, match="shp: expected a part among .*askvet.*; found 'cooking'"):
    load(shp, home, parts=('cooking',))


# --- hh-rlhf


def test_a_transcript_is_turns():
  text = '\n\nHuman: a\nb\n\nHuman: c\n\nAssistant: \n\nHuman: d\n\nAssistant: Human: e'
  assert [(turn['role'], turn['content']) for turn in hh_rlhf.turns_of(text)] == [
    ('user', 'a\nb\n\nc'), ('assistant', ''), ('user', 'd'), ('assistant', 'Human: e')]
  with pytest.raises(ValueError, match='a transcript opens with'):
    hh_rlhf.turns_of('Human: a')


def test_a_comparison_of_replies(home):
  found = load(hh_rlhf, home, 'test', parts=('helpful-base',))
  assert len(found) == 21  # one parts before the last reply
  example = found[0]
  assert (example.chosen, example.rejected) == ('Here it is.', 'No.')
  assert example.prompt == dialogue.render([
    {'role': 'user', 'text': 'a test'}, {'role': 'agent', 'text': 'Which one?'},
    {'role': 'user', 'text': 'The red one.'}], None)[0]
  assert [message['role'] for message in example.messages] == [
    'user', 'assistant', 'user', 'assistant', 'assistant']


def test_what_opens_like_a_test_is_not_trained_on(home):
  found = [example for split in ('train', 'dev')
           for example in load(hh_rlhf, home, split, parts=('helpful-base',))]
  assert len(found) == 60 and 'a test' not in {example.group for example in found}


def test_test_files_are_split_anew(home):
  found = [example for split in SPLITS for example in load(
    hh_rlhf_test, home, split, parts=hh_rlhf.HARMLESS)]
  assert len(found) == 21 and {example.group for example in found} == {
    'a test', *(f'tested {i}' for i in range(20))}
  places = [dialogue.split_at(f'group {i}', 60, 70) for i in range(2000)]
  assert 0.57 < places.count('train') / 2000 < 0.63 and 0.08 < places.count('dev') / 2000 < 0.12


# --- E2E


def test_a_meaning_has_all_that_was_written_for_it(home):
  found = load(e2e, home, 'test', 'demonstration')
  assert [example.response for example in found] == 2 * ['It is testset_w_refs, 0.',
                                                         'It is testset_w_refs, 1.']
  assert all(e.meta['references'] == ['It is testset_w_refs, 0.', 'It is testset_w_refs, 1.']
             for e in (*found, *load(e2e, home, 'test', 'prompt')))
  assert 'name[testset_w_refs 0], food["Thai"]' in found[0].prompt


def test_without_the_train_set_the_dev_set_is_split(home):
  (home / 'trainset.csv').unlink()
  text = ''.join(f'name[dev {i}],A.\n' for i in range(60))
  (home / 'devset.csv').write_text('mr,ref\n' + text)
  groups = {split: {e.group for e in load(e2e, home, split, 'prompt')} for split in SPLITS}
  assert len(groups['train']) + len(groups['dev']) == 60 and not groups['train'] & groups['dev']
  assert groups['dev'] and len(groups['test']) == 2


# --- TL;DR and SHP


def test_a_summary_follows_its_post(home):
  (example,) = load(reddit_tldr, home, kind='demonstration')
  assert example.prompt + example.response == (
    'SUBREDDIT: r/cooking\n\nTITLE: Burnt toast\n\nPOST: I burnt t3_train.\n\nTL;DR: Toast burnt.')
  assert reddit_tldr.prompt_of({'post': 'x', 'title': None}) == 'POST: x\n\nTL;DR:'


def test_a_choice_of_summaries(home):
  found = load(reddit_tldr, home)
  assert [(e.chosen, e.rejected) for e in found] == [(' Short.', ' Long.'), (' Long.', ' Short.')]
  assert {e.prompt for e in found} == {load(reddit_tldr, home, kind='prompt')[0].prompt}
  assert found[0].meta['confidence'] == 7 and found[0].group == 't3_train'


def test_label_1_means_that_a_is_better(home):
  b, a = load(shp, home, parts=('askvet',))
  assert (b.chosen, a.chosen) == ('Like B.', 'Like A.') and a.rejected == 'Like B.'
  assert a.meta['score_ratio'] == 2.5 and a.group == 'train askvet'


# --- GSM8K


def test_a_problem_has_its_answer_and_no_calculator(home):
  found = {example.group: example for example in load(gsm8k, home, 'test', 'demonstration')}
  example = found['tom has 100 apples and buys 1,000 more. how many?']
  assert example.meta['answer'] == '1100' and '<<' not in example.response
  assert example.messages[-1]['content'] == 'He has 100+1000=1100.\n#### 1,100'
  assert gsm8k.response_metrics('', 'It is $1,100.00.', example.response) == {'correct': 1.0}


def test_solutions_are_labelled_and_paired_within_their_problem(home):
  labelled, pairs = (load(gsm8k_solutions, home, 'train', kind)
                     for kind in ('labelled', 'preference'))
  assert len(labelled) == len(pairs) == 4 * len(load(gsm8k_solutions, home, 'train', 'prompt'))
  assert all(gsm8k.correct(e.response, e.meta['answer']) == bool(e.label) for e in labelled)
  assert all(gsm8k.correct(e.chosen, e.meta['answer']) and e.rejected == 'A: 7' for e in pairs)
  assert not any('<<' in e.response for e in labelled)


@pytest.mark.parametrize('text, answer', [
  ('#### 18', '18'), ('a 3\n####  -1,234.50 dollars, not 7', '-1234.50'), ('#### $70,000', '70000'),
  (r'thus \boxed{42}, not 7', '42'), (r'\boxed{1} and \boxed{ \$2.5 }', '2.5'),
  ('Half is 0.5', '0.5'), ('or .5', '.5'), ('is −3.', '-3'), ('10-5', '5'), ('(2)-1', '1'),
  ('costs -$4', '-4'), (r'\boxed{-\$4}', '-4'), ('it is 1,2345', '2345'), ('3, 4', '4'),
  ('a 7.', '7'), ('none', None), ('#### none, not 3', '3'), ('12####', None), ('', None)])
def test_the_answer_of_a_text(text, answer):
  found = gsm8k.answer_of(text)
  assert (found is None) == (answer is None)
  assert answer is None or gsm8k.correct(text, answer)


@needs_shared
def test_all_published_solutions_are_right_and_corrupted_ones_wrong():
  rows = [row for name in ('train', 'test')
          for row in tfds.read_rows(SHARED / f'gsm8k/{name}.jsonl')]
  answers = [row['answer'].rpartition('\n#### ')[2].replace(',', '') for row in rows]
  assert len(rows) == 8792
  assert all(gsm8k.correct(row['answer'], answer) for row, answer in zip(rows, answers))
  corrupted = [f'{row["answer"]}1' for row in rows]
  assert not any(gsm8k.correct(text, answer) for text, answer in zip(corrupted, answers))


@needs_shared
def test_the_rule_says_of_published_solutions_what_their_labels_say(tmp_path):
  place = tmp_path / gsm8k_solutions.FILE
  place.parent.mkdir(parents=True)
  place.write_bytes((SHARED / 'gsm8k/example_model_solutions.jsonl').read_bytes())
  found = [e for split in SPLITS for e in gsm8k_solutions.load(
    split, 'labelled', mirror=str(tmp_path), data_dir=str(tmp_path / 'prepared'))]
  assert len(found) == 5276 and sum(e.label for e in found) == 2001
  assert all(gsm8k.correct(e.response, e.meta['answer']) == bool(e.label) for e in found)


@needs_shared
def test_published_comparisons_are_read(tmp_path):
  os.makedirs(tmp_path / 'harmless-base')
  published = SHARED / 'hh-rlhf/harmless-base/test-head.jsonl.gz'
  (tmp_path / 'harmless-base/test.jsonl.gz').write_bytes(published.read_bytes())
  found = hh_rlhf.load('test', 'preference', mirror=str(tmp_path), parts=hh_rlhf.HARMLESS,
                       data_dir=str(tmp_path / 'prepared'))
  rows = tfds.read_rows(published)
  # Where the transcripts part, by characters: never before the last reply of either.
  part = [os.path.commonprefix([row['chosen'], row['rejected']]) for row in rows]
  whole = [all(row[side].rfind('\n\nAssistant:') < len(shared) for side in row)
           for row, shared in zip(rows, part)]
  assert len(rows) == 1200 and len(found) == sum(whole)


def test_a_tenth_of_train_is_held_out():
  groups = [f'group {i}' for i in range(2000)]
  held = [records.held_out(group, 'train') for group in groups]
  assert 0.08 < held.count('dev') / len(held) < 0.12 and set(held) == {'train', 'dev'}
  assert {records.held_out(group, 'test') for group in groups} == {'test'}


# --- Downloads


@pytest.mark.parametrize('name', [m for m in choices.names(sets.SETS)
                                  if hasattr(choices.find(sets.SETS, m), 'SOURCE')])
def test_a_home_is_of_a_commit_and_its_files_have_checksums(name):
  """Where the home has commits; those of two have none, and no word on their files."""
  source = choices.find(sets.SETS, name).SOURCE
  files = {file for part in source.parts.values() for file in part.files}
  if name in ('reddit_tldr', 'shp'):
    assert not files & source.checksums.keys()
    return
  assert re.search('/[0-9a-f]{40}$', source.home), source.home
  assert files <= source.checksums.keys()
  for checksum in map(source.checksums.get, files):
    assert re.fullmatch('sha256:[0-9a-f]{64}|git:[0-9a-f]{40}', checksum), checksum


@needs_shared
@pytest.mark.parametrize('source, folder', [(gsm8k.SOURCE, 'gsm8k'),
                                            (e2e.SOURCE, 'e2e'),
                                            (taskmaster_coffee.SOURCE, 'taskmaster')])
def test_checksums_are_those_of_the_published_files(source, folder):
  there = {name: SHARED / folder / name.removeprefix('grade_school_math/data/')
           for name in source.checksums}
  there = {name: file for name, file in there.items() if file.is_file()}
  assert len(there) > 1
  for name, file in there.items():
    pins.check(name, epath.Path(file), source.checksums[name])


def test_a_blob_of_git_is_known_by_its_id(tmp_path):
  file = epath.Path(tmp_path / 'a')
  file.write_text('hello\n')
  pins.check('a', file, 'git:ce013625030ba8dba906f756967f9e9ca394464a')  # git hash-object
  with pytest.raises(OSError, match='expected a with git ce01.*found .*again'):
    file.write_text('hello')
    pins.check('a', file, 'git:ce013625030ba8dba906f756967f9e9ca394464a')
