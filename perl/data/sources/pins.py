"""Commits and checksums of published files: what is downloaded is what was read here.

A checksum is the sha256 of the file, or, of a file that was not at hand, what its home says of it:
its id as a blob of git (sha1 of 'blob SIZE', a zero byte, and the content). Sources: the trees of
the repositories at these commits, and the pointers of Git LFS in them, which hold the sha256.
"""

import hashlib
from collections.abc import Mapping

from etils import epath

E2E = 'ab0d967dd5729ce455ef14ba9ffafc456a335264'
GSM8K = '3101c7d5072418e28b9008a6636bde82a006892c'
HH_RLHF = '354e5c3cb8960630860dd5774a6ac2a58313bf4d'
TASKMASTER = 'd92cb6af3005f1dc09c39e75e7daf4a04905e00b'
"""Commits."""

CHECKSUMS: Mapping[str, str] = {
  'devset.csv':
    'sha256:fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9',
  'testset_w_refs.csv':
    'sha256:edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd',
  'trainset.csv':
    'git:fa3a5e1124d2aa0d768881e38f8ee73e63d5880d',
  'grade_school_math/data/example_model_solutions.jsonl':
    'sha256:4bc62db838f8418365d51c627bd66294cbdca9fb7f01519cb13f0dce8c51580b',
  'grade_school_math/data/test.jsonl':
    'sha256:3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14',
  'grade_school_math/data/train.jsonl':
    'sha256:17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465',
  'harmless-base/train.jsonl.gz':
    'git:df7c90b1bbd6093bda9c996e8aab9a46fa557dcf',
  'harmless-base/test.jsonl.gz':
    'sha256:ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03',
  'helpful-base/train.jsonl.gz':
    'sha256:518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4',
  'helpful-base/test.jsonl.gz':
    'sha256:8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b',
  'helpful-online/train.jsonl.gz':
    'sha256:0994d18b82083f5c084ce04071b683958a724df8c7215ab1d851986642d36a2a',
  'helpful-online/test.jsonl.gz':
    'sha256:39a475cc7e0df972902f8e3a0972726fce826ac65369bda8c671de4330c60a10',
  'helpful-rejection-sampled/train.jsonl.gz':
    'sha256:0cea2d2ab2187624ec1314e8cc6fb579f0fa987b3a33e8102b7556ed4d255f64',
  'helpful-rejection-sampled/test.jsonl.gz':
    'sha256:abc35dbc56015db1dae0faa484514ccbc3eee0133bfcd557fc69250619b028bb',
  **{f'{folder}/{stem}_{i:02d}.json': f'sha256:{digest}' for folder, stem, digests in (
    ('TM-3-2020/reward', 'reward', (
      '3b35c36b1df6f53142746e3921133971c4a0409cd56afcc4f4ec05b1bc1a9ee1',
      '4ae68457d5977160e77c4e01bd28f07ffdca0840947b0e4a1e9fb119d4150927',
      'b81ef285225471e2db8dbb5bedb58f4cf4da1c8aa1fb44ed29ff894f675a8953',
      'c7feda53f890074be86a7778efa672b5d70a9a323831304889815e2fc5dcb26c',
      '14a121bcc178ba9b5044d9ddde7fa21dd01e53b6382de4d9fbc19a86fdc756f2',
      'ad68debd6c9fec9a3f5fd6ad4990300e5e379ac283f7d400fad4b4cfc1b67b77',
      'a2e36d561ab8026d6771cae79e003e9bc3a674b27cda8eedf2e78b5f24ad3396',
      '323cce6a474f98003bf3661dabde98fbf916cf2ffb49cbd52d36d35fbc09ffb2',
    )),
    ('TM-4-2024/data', 'data', (
      'd9440d1a46e6ba9f8c680a77a7dc7a42b0b3266ef555aeac6160b0d5ac37c647',
      '2577d6af1c9d7cc5540d5193206d35b000ebeff59925c1076ce724f1a85b8964',
      'b353618d9709c6bdeafa08682526e04047ad28d5f9acd65ed7878482a90d49df',
      '45fe8eb52af674b69972d172c911f9cfd6f5044b61338b524997edf1a4861641',
      'bf5f2e3704aab48f657ec97f8d9bf041abec17a1cd3e56206c3424910875088d',
      '3d158e9880bfea3e5db18d008cf1f726f1d802eca28c2b71fc291274b9ee60ba',
      'dd0546a6aaf430a812f4cfb5d8f9f0c823136ba2e77e78103b50a8e95080759c',
      'b61f11f3c950c330049906ae249e858503ec7c905fcad5b4a7edd851ccf07bbc',
    )),
    ('TM-4-2024/reward', 'reward', (
      '79f809857b90e8afe28c542dbcbdea79a1a1e365aa4626b6ec2fdc37785a9f24',
      '818fe4604d23cbb3b77aebf98f28300ae411ca3305a4b730d19bd8ff69ab9455',
      '433851379c7143299b2570ffc7c40a8f57ddabf0c8278ad123da7a7dac64c867',
      'd2f96717912652d3bd0a7aa907aa0b798aa35465e5ee5a768f0de118d08fe149',
      '73ae7f65dc98f1906eac243cf95cc75f7b6489ef5e4a7cf8c787f4704672a7df',
      '8d0c124fd06b261596fc72e188fbd326d1b5dd559ecbf3a585a513c1f3e12cf1',
      '55ce13a025dcfb842ef2de75e4cfafb07a1f1938905d5c4e59e5b440a7ce624c',
    )),
  ) for i, digest in enumerate(digests)},
}
"""File of a home, as its `Source` names it -> its checksum."""


def check(name: str, file: epath.Path, checksum: str) -> None:
  """Requires that a file is the published one.

  Args:
    name: of the file, for the error.
    file: it.
    checksum: 'sha256:...' or 'git:...'.

  Raises:
    OSError: it is another.
  """
  kind, _, expected = checksum.partition(':')
  found = digest(file, kind)
  if found != expected:
    raise OSError(
      f'expected {name} with {kind} {expected}, found {found} ({file.stat().length:,} bytes); the '
      f'download was cut or changed, or the home has another file now: delete {file} and try '
      'again, or set data.mirror to a folder with the file that you trust')


def digest(file: epath.Path, kind: str = 'sha256') -> str:
  """The hex digest of a file: 'sha256', or 'git', that of a blob."""
  sha = hashlib.sha256() if kind == 'sha256' else hashlib.sha1(
    f'blob {file.stat().length}\0'.encode())
  with file.open('rb') as stream:
    while block := stream.read(2**22):
      sha.update(block)
  return sha.hexdigest()
