"""Where users say, and nowhere else: one door for every path, object stores among them."""

import ast
import json

import pytest
import toyrun as run
from bucket import bucket  # noqa: F401
from test_architecture import FILES, parsed
from toyrun import toyrun  # noqa: F401

from perl import paths
from perl.cli import compare, convert, judge, launch, report
from perl.config import schema
from perl.config.fields import ConfigError
from perl.config.validate import validate
from perl.train import checkpoint, metrics

# --- What cannot be served


@pytest.mark.parametrize('place', [
  's3://bucket/run', 'az://b/run', 'hf://a/b', 'hdfs://host/run', 'foo://x', 'gs:/bucket/run',
  'file:///tmp/run', 'http://host/run'])
def test_a_scheme_that_nobody_serves_is_refused(place):
  with pytest.raises(ValueError, match='expected a local path or one of gs://, found'):
    paths.of(place)


def test_a_scheme_whose_package_is_not_there_is_refused(monkeypatch):
  monkeypatch.setitem(paths.SERVED, 'gs', 'no_such_package')
  with pytest.raises(ValueError, match='pip install no_such_package'):
    paths.of('gs://bucket/refused')


@pytest.mark.parametrize('place', ['runs/demo', '/runs/a b', 'C:run', '.', '', 'a:b/c', '~/x'])
def test_local_paths_are_paths(place):
  assert paths.is_local(paths.of(place)) and '~' not in str(paths.of(place))


@pytest.mark.parametrize('path', [p for p, f in schema.FIELDS.items() if f.unit == 'path'])
def test_a_field_that_names_such_a_place_is_refused_with_the_config(path):
  with pytest.raises(ConfigError, match=f'(?m)^{path}: expected a local path'):
    validate(run.config(**{path.replace('.', '__'): 's3://bucket/x'}))


@pytest.mark.parametrize('program, flags', [
  (launch, ['--config=demo', '--workdir=s3://bucket/run']),
  (launch, ['--config=demo', '--workdir', 's3://bucket/run']),
  (launch, ['--config=s3://bucket/config.json', '--workdir=runs/x']),
  (report, ['--workdir=s3://bucket/run']),
  (compare, ['s3://bucket/run']),
  (judge, ['--ours=s3://bucket/evaluate', '--theirs=runs/x']),
  (judge, ['--ours=runs/x', '--theirs=runs/x', '--json=s3://bucket/x.json']),
  (convert, ['inspect', '--folder=s3://bucket/x']),
  (convert, ['import', '--folder=x', '--out=s3://bucket/x']),
  (convert, ['export', '--stage=x', '--out=s3://bucket/x']),
  (convert, ['merge', '--folder=x', '--adapter=y', '--out=s3://bucket/x']),
])
def test_a_program_that_is_sent_there_ends_at_once(program, flags, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert program.main(flags) == 2
  assert 'expected a local path or one of gs://, found' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_new_folder_is_asked_for_before_anything_is_read(tmp_path, capsys):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').touch()
  flags = ['merge', '--folder=nothing', '--adapter=nothing', f'--out={tmp_path / "full"}']
  assert convert.main(flags) == 2
  assert 'expected a new or empty folder' in capsys.readouterr().err


# --- An object store


def test_a_stage_lives_in_an_object_store(bucket, toyrun, capsys):  # noqa: F811
  """Config, checkpoints, metrics, adapter, summary, report; and it is known again."""
  inputs = {f'inputs__{name}': str(toyrun / stage)
            for name, stage in (('tokenizer', 'tokenizer'), ('base', 'pretrain'))}
  config = run.config(**inputs, sft__steps=2)
  with run.small_world():
    summary = launch.run_stages(config, ('sft',), f'{bucket}/run')
  folder = paths.of(f'{bucket}/run')
  files = [file.name for file in paths.glob(folder, ('.json', '.jsonl', '.html'))]
  assert {'config.json', 'summary.json', 'read.json', 'metrics.jsonl', 'report.html'} <= {*files}
  assert summary['sft'].items() >= paths.read_json(folder / 'sft' / 'summary.json').items()
  assert [row['step'] for row in metrics.read_jsonl(folder / 'sft' / 'metrics.jsonl')][-1] == 2
  assert list((folder / 'sft' / 'tensorboard').iterdir())
  assert checkpoint.Checkpoints(folder / 'sft' / 'checkpoints').all_steps() == [2]
  with run.small_world():
    launch.run_stages(config, ('sft',), f'{bucket}/run')
  assert 'skipped: finished before' in capsys.readouterr().out
  assert report.main([f'--workdir={bucket}/run']) == 0 and compare.main([f'{bucket}/run']) == 0


def test_metrics_go_on_in_an_object_store(bucket):  # noqa: F811
  for first, resumed in ((1, -1), (2, 1)):
    with metrics.Writer(f'{bucket}/run', resumed_step=resumed) as writer:
      for step in (first, first + 1):
        writer.write(step, {'loss': 1.0})
        writer.flush()
  rows = metrics.read_jsonl(f'{bucket}/run/metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3]
  assert list(paths.of(f'{bucket}/run/tensorboard').iterdir())


def test_data_are_read_from_an_object_store(bucket):  # noqa: F811
  from perl.data.sets import local

  rows = [{'prompt': f'p{i}', 'response': 'r'} for i in range(20)]
  paths.write_text(f'{bucket}/data/train.jsonl', '\n'.join(map(json.dumps, rows)))
  examples = local.load('train', 'demonstration', mirror=f'{bucket}/data')
  assert len(examples) == 20 and local.kinds(f'{bucket}/data')


# --- The one door


EXEMPT = {
  'perl.paths': 'the door itself',
  'perl.cli': 'reads its own source, for --help',
  'perl.config.platform': 'the devices of this machine, and its cache of compiled programs',
  'perl.config.experiments': 'the configs that come with perl',
  'perl.data.sets': 'its own source, which is part of a stamp',
  'perl.train.provenance': 'its own commit, and /proc',
  'perl.train.metrics': 'a local room for TensorBoard, which is copied',
  'perl.hub.tensors': 'the name of a shard',
  'perl.hub.shards': 'os.fsync of a file that was opened',
  'perl.hub.example_models': 'a local room for wheels, which pip fills',
  'perl.cli.example_model': 'that room',
}
"""Module -> why it opens files otherwise."""

MODULES = ('pathlib', 'shutil', 'tempfile', 'glob', 'io')
OF_OS = ('open', 'makedirs', 'mkdir', 'listdir', 'remove', 'unlink', 'replace', 'rename', 'rmdir',
         'scandir', 'walk', 'stat', 'fsync', 'chmod')
OF_OS_PATH = ('exists', 'isfile', 'isdir', 'abspath', 'realpath', 'expanduser', 'getsize',
              'normpath', 'getmtime')


def past_epath(call):
  """Whether a call opens, makes or looks at files without epath; annotations are no calls."""
  text = ast.unparse(call.func)
  module, _, name = text.partition('.')
  return (text in ('open', 'gzip.open') or module in MODULES and module != 'io' and bool(name)
          or text in [f'os.{n}' for n in OF_OS] or text in [f'os.path.{n}' for n in OF_OS_PATH])


def test_no_module_opens_a_users_path_past_epath():
  wrong, used = [], set()
  for module in FILES:
    for node in ast.walk(parsed(module)):
      if isinstance(node, ast.Call) and past_epath(node):
        used.add(module)
        if module not in EXEMPT:
          wrong.append(f'{module}, line {node.lineno}: {ast.unparse(node)[:60]}')
  assert not wrong, 'open it by perl.paths.of:\n' + '\n'.join(wrong)
  assert used == EXEMPT.keys()  # the list names none that is no longer needed
