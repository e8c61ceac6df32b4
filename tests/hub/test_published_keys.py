"""config.json of published checkpoints, as public repositories keep them: each is read, or refused.

`published_keys.json`: name -> its config.json, where that was read, and, where it is refused, the
field and how it changes the mathematics. The texts are of GitHub repositories that hold such files,
not of the hub itself; the names are those of the hub.
"""

import json
import pathlib

import pytest
import releases

from perl.hub import families
from perl.hub.config_json import Unsupported

PUBLISHED = json.loads((pathlib.Path(__file__).parent / 'published_keys.json').read_text())
READ = [name for name, entry in PUBLISHED.items() if 'refused' not in entry]


def theirs(config):
  """The config.json that transformers writes of one that it has read."""
  kept = {k: v for k, v in config.items() if k not in ('model_type', 'transformers_version')}
  return releases.transformers.AutoConfig.for_model(config['model_type'], **kept).to_dict()


@pytest.mark.parametrize('name', READ)
def test_a_published_file_is_read_as_transformers_reads_it(name):
  """Its fields, and those in which transformers 5 writes them again, are one Config."""
  config = PUBLISHED[name]['config']
  assert families.parse(theirs(config)) == families.parse(config)


@pytest.mark.parametrize('name', [name for name in PUBLISHED if name not in READ])
def test_a_published_file_is_refused_for_one_field_that_changes_the_mathematics(name):
  config, (field, reason) = PUBLISHED[name]['config'], PUBLISHED[name]['refused'].split(': ')
  with pytest.raises(Unsupported, match=field):
    families.parse(config)
  assert reason and families.parse({k: v for k, v in config.items() if k != field})


def test_there_are_more_than_fifty_of_all_families():
  """`gemma3` is a wrapper of `gemma3_text`, whose files have a tower of vision besides."""
  assert len(PUBLISHED) > 50
  kinds = {entry['config']['model_type'] for entry in PUBLISHED.values()}
  assert kinds == set(releases.CLASSES)


@pytest.mark.parametrize('name, field, other', [
  ('google/gemma-2-9b-it', 'sliding_window_size', 2048),
  ('EleutherAI/pythia-6.9b-deduped', 'partial_rotary_factor', 0.5),
  ('EleutherAI/pythia-6.9b-deduped', 'rope_theta', 20000)])
def test_a_second_name_of_a_field_says_what_the_first_says(name, field, other):
  """transformers goes by the first, whatever the second says; a file of two minds is refused."""
  config = PUBLISHED[name]['config']
  without = {k: v for k, v in config.items() if k != field}
  assert families.parse(without) == families.parse(config)
  by_first = theirs(without)
  assert {k: theirs(without | {field: other})[k] for k in by_first} == by_first
  with pytest.raises(Unsupported, match=field):
    families.parse(config | {field: other})
