"""Jobs over a quantized checkpoint: read from its tensors, saved, trained over and exported."""

import json

import gguf_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import releases
import tiny
import toyrun
from test_checkpoints import config, published

from perl import quantization, trees
from perl.cli import convert, launch
from perl.config.fields import ConfigError
from perl.config.validate import validate
from perl.hub import adapters as peft_format
from perl.hub import pretrained, reading
from perl.jobs import _plan as plan
from perl.jobs._artefacts import Artefacts
from perl.jobs._run import Run
from perl.models import lm
from perl.peft import adapters
from perl.quantization import quantize_tree
from perl.quantized import Scheme, bits_per_parameter, scheme_of
from perl.train import bases, checkpoint, sharding
from perl.train.layout import MismatchError

SCHEME = Scheme('nf4', 8, True)
QUANTIZED = dict(model__quantize='nf4', model__quantize_block=8, model__double_quantize=True)


@pytest.mark.parametrize('family, scheme', [
  ('llama', SCHEME), ('gpt2', Scheme('int8', 8)), ('gpt_neox', Scheme('uint4', 8))])
def test_a_checkpoint_is_quantized_as_it_is_read(
    tmp_path, monkeypatch, optimized, family, scheme):
  """The same bits as of the dense base; but of that there is never more than a tensor or two."""
  quantization.encoder.cache_clear()  # of other programs
  releases.make(family, num_hidden_layers=6).save_pretrained(tmp_path)
  _, dense, _ = pretrained.load(tmp_path)
  expected = quantize_tree(dense, scheme)
  layers = sum(x.nbytes for n, x in trees.flat(dense).items() if n.endswith('/kernel'))
  dense = None
  before, peak, store = {id(x) for x in jax.live_arrays()}, [], reading._store

  def watched(*args):
    floats = [x for x in jax.live_arrays() if id(x) not in before and x.ndim > 1
              and jnp.issubdtype(x.dtype, jnp.floating) and min(x.shape[-2:]) >= 8]
    peak.append(sum(x.nbytes for x in floats))
    return store(*args)

  monkeypatch.setattr(reading, '_store', watched)
  _, found, _ = pretrained.load(tmp_path, quantize=scheme)
  tiny.equal(found, expected)
  outer = sum(x.nbytes for n, x in trees.flat(found).items() if n.startswith('embed'))
  assert max(peak) - outer < layers / 2


def test_on_a_mesh_it_is_read_to_where_it_lies(tmp_path):
  releases.make('llama').save_pretrained(tmp_path)
  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  _, found, _ = pretrained.load(tmp_path, quantize=SCHEME, mesh=mesh)
  _, alone, _ = pretrained.load(tmp_path, quantize=SCHEME)
  tiny.equal(found, alone)
  places = sharding.base_shardings(found, mesh)
  assert all(jax.tree.leaves(jax.tree.map(lambda x, p: x.sharding == p, found, places)))


def test_our_own_base_is_read_leaf_by_leaf_and_a_quantized_one_as_it_is(tmp_path, monkeypatch):
  model, base = tiny.make('gpt2', param_dtype='bfloat16', dtype='bfloat16')
  like, mesh = lm.abstract(model), sharding.mesh(data=2, fsdp=2, tensor=2)
  bases.save(tmp_path / 'dense', base, {'digest': 'ab'})
  read, restore = [], bases.quantize
  monkeypatch.setattr(bases, 'quantize', lambda x, s: read.append(x.shape) or restore(x, s))
  made, meta = bases.load(tmp_path / 'dense', like, scheme=SCHEME)
  tiny.equal(made, quantize_tree(base, SCHEME))
  assert meta == {'digest': 'ab'} and len(read) == 6
  bases.save(tmp_path / 'nf4', made, meta)
  for place in (None, mesh):
    again, meta = bases.load(tmp_path / 'nf4', like, mesh=place)
    tiny.equal(again, made)
    assert trees.digest(again) == trees.digest(made) != trees.digest(base)
  assert meta['quantized'] == {'kind': 'nf4', 'block': 8, 'double': True}
  assert bases.load(tmp_path / 'nf4', like, scheme=SCHEME)[1] == meta
  with pytest.raises(MismatchError, match="quantized as int8-8, .*found nf4-8-double; set model.q"):
    bases.load(tmp_path / 'nf4', like, scheme=Scheme('int8', 8))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(checkpoint, workdir, config) of sft over its quantized base with a paged optimizer."""
  tmp = tmp_path_factory.mktemp('quantized')
  folder = published(tmp / 'hub')
  made = config(folder, mesh__optimizer_memory='pinned_host', inputs__anchor='base', **QUANTIZED)
  with toyrun.small_world():
    launch.run_stages(made, ('sft',), tmp / 'run')
  return folder, tmp / 'run', made


def test_sft_leaves_an_adapter_that_names_its_base(run):
  folder, workdir, made = run
  base = Artefacts(Run(made, str(workdir / 'sft'), 'sft')).base()
  assert scheme_of(base.params) == SCHEME
  assert base.digest == f'nf4-8-double:{pretrained.digest(folder)}'
  summary = toyrun.read(workdir / 'sft' / 'summary.json')
  assert summary['parameters_total'] == trees.count(base.params)
  assert summary['merge_logit_difference'] < 1e-4
  setting = Run(made, str(workdir / 'sft'), 'sft')
  adapter, meta = Artefacts(setting).adapter(str(workdir / 'sft'), base)
  assert meta['base_digest'] == base.digest
  dense = Artefacts(Run(config(folder), str(workdir / 'sft'), 'sft')).base()
  with pytest.raises(MismatchError, match='base_digest.*nf4-8-double'):
    Artefacts(setting).adapter(str(workdir / 'sft'), dense)


def test_the_anchor_is_the_quantized_base_with_the_adapter_below(run):
  """Nothing is merged into codes: reward models and policies lie over it, and keep it frozen."""
  folder, workdir, _ = run
  made = config(folder, **QUANTIZED)
  setting = Run(made, str(workdir / 'reward'), 'reward')
  base = Artefacts(setting).base()
  anchor, sft = Artefacts(setting).anchor_over(base)
  assert trees.digest(anchor.params) == trees.digest(base.params) and anchor.below is sft
  assert anchor.digest != base.digest
  above = Artefacts(setting).new_adapter(anchor, setting.key, head=True)
  assert adapters.count(above) == adapters.count(sft) + base.model.config.width + 1
  tokens, mask = tiny.tokens(2, 6), np.ones((2, 6), bool)
  ask = lambda adapter: lm.logits(base.model, base.params, adapter, tokens, mask)
  np.testing.assert_allclose(ask(above), ask(sft), atol=1e-5)


def test_it_is_exported_merged_with_the_errors_told(run, tmp_path, capsys):
  folder, workdir, made = run
  assert convert.main(['export', f'--stage={workdir / "sft"}', f'--out={tmp_path / "whole"}',
                       '--form=merged']) == 0
  said = dict(line.split(' ', 1) for line in capsys.readouterr().out.splitlines() if ' ' in line)
  assert float(said['merge_error_rms']) == 0.0  # this base is float32
  setting = Run(made, str(workdir / 'sft'), 'sft')
  base = Artefacts(setting).base()
  adapter, _ = Artefacts(setting).adapter(str(workdir / 'sft'), base)
  model, merged, _ = pretrained.load(tmp_path / 'whole')
  assert scheme_of(merged) is None
  tokens, mask = releases.rows()
  expected = releases.ours(base.model, base.params, adapter, tokens, mask)
  assert releases.distance(releases.ours(model, merged, {}, tokens, mask), expected, mask) < 1e-4


def test_convert_writes_a_quantized_base_that_jobs_read(run, tmp_path, capsys):
  folder, workdir, made = run
  out = tmp_path / 'nf4'
  assert convert.main(['import', f'--folder={folder}', f'--out={out}', '--quantize=nf4',
                       '--block=8', '--double']) == 0
  for other in (config(out), config(out, **QUANTIZED),
                config(folder, inputs__base=str(out), inputs__tokenizer=str(out))):
    setting = Run(other, str(workdir / 'sft'), 'sft')
    base = Artefacts(setting).base()
    assert base.digest == pretrained.digest(out) == f'nf4-8-double:{pretrained.digest(folder)}'
    Artefacts(setting).adapter(str(workdir / 'sft'), base)
  tiny.equal(base.params, Artefacts(Run(made, str(workdir / 'sft'), 'sft')).base().params)
  capsys.readouterr()
  assert convert.main(['inspect', f'--folder={out}', '--json']) == 0
  told = json.loads(capsys.readouterr().out)
  assert told['tensors']['layers/block/attn/q/kernel']['dtype'] == 'nf4-8-double'
  assert told['bits_per_parameter'] == bits_per_parameter(base.params)
  assert told['bytes'] == trees.size_bytes(base.params)
  assert told['parameters'] == trees.count(base.params)


def test_the_blocks_of_a_gguf_file_are_a_base(tmp_path, capsys):
  """Read by a job or by convert, the same bits with one digest; planned in their own bytes."""
  file, out = tmp_path / 'x.gguf', tmp_path / 'out'
  gguf_files.write(file, gguf_files.make('llama'), 'Q4_1')
  made = config(file, model__quantize='native')
  assert validate(made) is not None
  base = Artefacts(Run(made, '', 'sft')).base()
  assert base.digest == f'native:{pretrained.digest(file)}'
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(plan.Plan(made, 'sft').anchor.params) == shapes(base.params)
  assert convert.main(['import', f'--gguf={file}', f'--out={out}', '--quantize=native']) == 0
  assert 'quantized uint4-32\nbits_per_parameter 6.0\nlargest_difference 0.0\n' in (
    capsys.readouterr().out)
  again = Artefacts(Run(config(out), '', 'sft')).base()
  assert again.digest == base.digest
  tiny.equal(again.params, base.params)
  gguf_files.write(file, gguf_files.make('llama'), 'Q5_1')
  with pytest.raises(ConfigError, match='model.quantize: expected a GGUF file whose layers'):
    validate(made)


def test_a_plan_knows_the_bytes(run):
  folder, _, made = run
  for stage, quantized in (('sft', True), ('pretrain', False)):
    planned = plan.Plan(made, stage)
    assert (scheme_of(planned.anchor.params) == SCHEME) == quantized
  base = Artefacts(Run(made, '', 'sft')).base().params
  tiny_shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert tiny_shapes(plan.Plan(made, 'sft').anchor.params) == tiny_shapes(base)


def test_a_peft_adapter_lies_over_it_too(run, tmp_path):
  folder, workdir, made = run
  assert convert.main(['export', f'--stage={workdir / "sft"}', f'--out={tmp_path / "ad"}']) == 0
  setting = Run(made, str(workdir / 'sft'), 'sft')
  base = Artefacts(setting).base()
  own, _ = Artefacts(setting).adapter(str(workdir / 'sft'), base)
  again = peft_format.load(tmp_path / 'ad', base.params, base_digest=base.digest)
  jax.tree.map(np.testing.assert_allclose, again, own)
  with pytest.raises(ValueError, match='nf4-8-doubl'):
    peft_format.load(tmp_path / 'ad', base.params, base_digest=pretrained.digest(folder))


@pytest.mark.parametrize('change, match', [
  ({'peft.name': 'full'}, "expected model.quantize='' for peft.name=full, found 'nf4'"),
  ({'rl.decode': 'merged'}, 'expected rl.decode=adapter or auto for model.quantize=nf4'),
  ({'model.quantize': 'nf3'}, "to be one of , nf4, fp4, int8, int4, native, found 'nf3'"),
  ({'mesh.optimizer_memory': 'disk'}, 'to be one of device, pinned_host'),
])
def test_what_cannot_be_is_a_config_error(run, change, match):
  made = run[2].copy_and_resolve_references()
  made.update_from_flattened_dict(change)
  with pytest.raises(ConfigError, match=match):
    validate(made)


def test_checkpoints_of_a_paged_run_hold_the_state(run):
  tree = checkpoint.Checkpoints(run[1] / 'sft' / 'checkpoints').restore().tree
  assert any(np.any(x) for x in jax.tree.leaves(tree['opt_state']))
