"""Forecasts: bytes by hand, verdicts, the largest batch, and the program."""

import os

import pytest
import toyrun as run

from perl.cli import forecast as program
from perl.config import platform
from perl.config.fields import ConfigError
from perl.forecast import devices, largest, measure, study, table

# --- Bytes


@pytest.fixture(scope='module')
def rl():
  """The toy's RL stage as configured and conventional, measured."""
  with run.small_world():
    config = run.config()
    made = {c: study.build(config, 'rl', c, accelerator=True) for c in study.COLUMNS}
    return {c: (built, measure.stage(built, 'rl')) for c, built in made.items()}


def test_bytes_by_role_by_hand(rl):
  parameters = 300 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
  adapter = 2 * (4 * 2 * (64 + 64) + 4)  # layers, projections, r (I + O) and a scale
  trained, head = adapter - 2 * 4, 64 + 1
  held = rl['configured'][1]['held']
  assert held['base'] == 4 * parameters
  assert held['policy'] == held['reference'] == 4 * adapter
  assert held['critic'] == 4 * (adapter + head)
  assert held['reward'] == 4 * (adapter + head + 4)  # the demo's head reads likelihoods
  gradients = 4 * (2 * trained + head)
  assert rl['configured'][1]['gradients_bytes'] == gradients
  assert held['optimizer'] == pytest.approx(2 * gradients, abs=64)  # two moments, and counts
  whole = rl['full'][1]['held']
  assert whole['base'] == 0 and whole['policy'] == whole['reference'] == 4 * parameters
  assert whole['optimizer'] == pytest.approx(2 * 4 * (2 * parameters + head), abs=64)


def test_the_cache_by_hand(rl):
  layers, heads, width, slots, rows = 2, 2, 32, 24 + 8, 8
  assert rl['configured'][1]['cache_bytes'] == layers * 2 * rows * slots * heads * width * 4


def test_a_peak_is_what_is_held_and_what_a_program_adds(rl):
  for _, found in rl.values():
    assert found['held_bytes'] == sum(found['held'].values())
    peaks = [p['peak_bytes'] for p in found['programs'].values()]
    assert found['peak_bytes'] == max(peaks) > found['held_bytes']
    update = found['programs']['update']
    assert update['temporaries_bytes'] >= found['gradients_bytes']
    assert update['peak_bytes'] >= update['total_bytes']  # other roles wait beside it


def test_frozen_whole_models_are_stored_as_the_base_is():
  with run.small_world():
    config = run.config(model__param_dtype='bfloat16')
    made = study.build(config, 'rl', 'full', accelerator=True)
    found = measure.held(made, 'rl')
  head = 4 * (64 + 1 + 4)
  assert found['policy'] == 2 * found['reference'] and found['reward'] - head == found['reference']


def test_bfloat16_has_no_float32_copies_where_an_accelerator_is_forecast():
  with run.small_world():
    narrow, copied, wide = (measure.program(
      measure.build(run.config(model__dtype=dtype, model__param_dtype=dtype), 'sft', **how),
      'update', **how)['temporaries_bytes'] for dtype, how in (
        ('bfloat16', {}), ('bfloat16', {'accelerator': False}), ('float32', {})))
  assert narrow < wide and narrow < copied


def test_a_mesh_splits_what_a_device_holds():
  with run.small_world():
    one = measure.stage(measure.build(run.config(peft__name='full'), 'sft'), 'sft')
  with run.small_world(devices=8):
    config = run.config(peft__name='full', mesh__data=1, mesh__fsdp=8)
    eight = measure.stage(measure.build(config, 'sft'), 'sft')
  assert eight['devices'] == eight['ways'] == 8
  assert eight['held']['base'] < one['held']['base'] / 3  # norms, and what 8 does not divide
  assert eight['peak_bytes'] < one['peak_bytes']
  assert eight['flops'] == one['flops'] / 8


# --- The largest batch


@pytest.mark.parametrize('peak', [
  lambda n: 100 + 7 * n,
  lambda n: 100 + 7 * n + 40 * (n // 16),
  lambda n: 3 * n + n * n // 50,
  lambda n: max(500, 9 * n),
])
@pytest.mark.parametrize('limit', [50, 107, 1000, 5000])
def test_the_largest_batch_is_found_and_rises_with_the_limit(peak, limit):
  calls = []
  counted = lambda n: calls.append(n) or peak(n)
  best = largest.search(counted, limit, start=8, most=1000)
  assert best == max((n for n in range(1, 1001) if peak(n) <= limit), default=0)
  assert len(calls) <= 6 + 10 and best in (*calls, 0)


def test_a_line_takes_few_compilations():
  calls = []
  best = largest.search(lambda n: calls.append(n) or 100 + 7 * n, 10_000, start=8, most=10**6)
  assert best == (10_000 - 100) // 7 and len(calls) <= 4


def test_all_programs_have_to_fit_and_the_unit_is_kept():
  peaks = {'a': lambda n: 10 * n, 'b': lambda n: 500 + 9 * n}
  assert largest.largest(peaks, 1000, unit=4, start=8) == 52  # b: 500 + 9 * 55
  assert largest.largest({'a': lambda n: 1}, 1000, unit=4, start=8) == largest.MOST


def test_the_largest_batch_of_a_stage_fits_and_the_next_does_not():
  with run.small_world():
    config = run.config(sft__microbatches=2)
    start = measure.stage(measure.build(config, 'sft'), 'sft')
    limit = 2 * start['peak_bytes']
    best = study.largest_batch(config, 'sft', 'configured', limit, start, accelerator=True)
    more = (measure.copy(config, sft__batch_size=rows) for rows in (best, best + 2))
    fits, bursts = (measure.stage(measure.build(c, 'sft'), 'sft')['peak_bytes'] for c in more)
  assert best % 2 == 0 and best > 8 and fits <= limit < bursts


# --- Devices and verdicts


def test_verdicts():
  device = devices.find(gib=2)
  assert table.verdict(2**30, device) == 'fits: 1.0 GiB of 2.0 GiB'
  assert table.verdict(3 * 2**30, device) == 'does not fit: needs 3.0 GiB of 2.0 GiB'


def test_a_bound_in_seconds_is_operations_over_the_peak():
  device = devices.Device('d', 1, {'bfloat16': 2e12})
  assert study.least_seconds(4e12, device, 'bfloat16') == 2.0
  assert study.least_seconds(4e12, device, 'float32') is None


@pytest.mark.parametrize('arguments, message', [
  (dict(name='h10'), "did you mean 'h100'"),
  (dict(name='h100', gib=3.0), 'found both'),
  (dict(gib=-1.0), 'a positive --device_gib'),
])
def test_an_unknown_device_is_refused(arguments, message):
  with pytest.raises(ConfigError, match=message):
    devices.find(**arguments)


def test_every_device_has_memory_and_a_rate():
  assert devices.find('cpu').memory_bytes > 0 and devices.find() is None
  for device in devices.DEVICES.values():
    assert device.memory_bytes >= 2**34 and device.bandwidth > 0
    assert device.peak_flops['bfloat16'] >= device.peak_flops['float32'] > 1e13


# --- The program


def test_the_program_prints_a_table_and_writes_json(tmp_path, capsys):
  with run.small_world():
    code = program.main([
      '--config=configs/demo.py', '--config.model.size=nano', '--stages=sft', '--device=h100',
      '--no_search', f'--json={tmp_path / "found.json"}'])
  assert code == 0
  text = capsys.readouterr().out
  assert '| per device | lora, one base | full tuning, whole models | ratio |' in text
  assert '| base, held, MiB |' in text and '* h100, lora, one base: fits: ' in text
  found = run.read(tmp_path / 'found.json')
  assert found['stages']['sft']['configured']['fits'] and found['versions']
  assert found['config']['model']['size'] == 'nano'


@pytest.mark.parametrize('flags, message', [
  (['--config.model.size=llama-3.2-1'], "did you mean 'llama-3.2-1b'"),
  (['--stages=sftt'], "did you mean 'sft'"),
  (['--config.mesh.fsdp=3'], 'product is the'),
  (['--config.sft.microbatches=3'], 'expected sft.microbatches to divide'),
  (['--devices=3'], 'expected 3 devices'),
  (['--device=h10'], "did you mean 'h100'"),
])
def test_a_wrong_flag_ends_in_a_message(flags, message, capsys):
  stages = [] if any('--stages' in f for f in flags) else ['--stages=sft']
  assert program.main(['--config=configs/demo.py', *stages, *flags]) == 2
  assert message in capsys.readouterr().err


def test_devices_are_asked_for_before_jax_starts(monkeypatch, tmp_path):
  environ = {'XLA_FLAGS': '--xla_dump_to=/x', 'JAX_PLATFORMS': '', platform.GUARD: '1',
             'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  platform.tune(['--config=c', '--devices=4'])
  assert os.environ['XLA_FLAGS'] == f'--xla_dump_to=/x {platform.VIRTUAL}=4'
  assert os.environ['JAX_PLATFORMS'] == 'cpu'
