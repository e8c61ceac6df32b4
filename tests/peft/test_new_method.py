"""The example of a new method in docs/methods.md: one file, found by name, by the laws of all."""

import pathlib
import re

import jax
import numpy as np
import pytest
import test_methods as laws
import tiny
import toyrun as run

from perl import choices
from perl.jobs import _programs as programs
from perl.peft import adapters, methods, protocol

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'methods.md'
LAWS = [
  laws.test_a_fresh_adapter_is_the_base_or_says_that_it_is_not, laws.test_project_is_merge,
  laws.test_unmerge_is_the_inverse_or_refused,
  laws.test_gradients_of_a_product_are_finite_differences,
  laws.test_the_first_step_moves_a_fresh_adapter, laws.test_counts_are_those_of_the_formula,
  laws.test_over_a_quantized_base,
]
"""Those that a mistake in the file itself would break."""


@pytest.fixture(scope='module')
def example(tmp_path_factory):
  """Its text, as a file that the package finds."""
  section = PAGE.read_text().split('\n## A new method\n')[1].split('\n## ')[0]
  text = re.search(r'```python\n(.*?)```', section, re.DOTALL)[1]
  folder = tmp_path_factory.mktemp('peft')
  (folder / 'lora_xs.py').write_text(text)
  methods.__path__.append(str(folder))
  protocol.known_options.cache_clear()
  yield text
  methods.__path__.remove(str(folder))
  protocol.known_options.cache_clear()


def test_it_is_short(example):
  assert len(example.splitlines()) <= 42


def test_it_is_found_by_its_name(example):
  assert 'lora_xs' in choices.names('perl.peft.methods')


@pytest.mark.parametrize('law', LAWS, ids=lambda law: law.__name__)
def test_it_obeys_the_laws(example, law):
  law(laws.described('lora_xs'))


def test_jobs_take_it(example):
  config = run.config(peft__name='lora_xs')
  for name in ('sft', 'reward', 'rl'):
    stage = programs.stage(config, name)
    assert adapters.count(stage.state.adapters) > 0
    stage.programs['update'].trace()


def test_it_trains_little(example):
  base = tiny.make()[1]
  made = adapters.init(jax.random.key(0), base, 'lora_xs', rank=3)
  assert adapters.count(made) == 2 * 4 * 9
  assert np.all(adapters.split(made)[0]['layers']['block']['attn']['q']['kernel'].r == 0)
