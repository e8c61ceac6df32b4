"""Install perl: parameter-efficient RLHF in JAX and Flax."""

import pathlib

from setuptools import find_packages, setup

GGUF = ['gguf>=0.17']
REFERENCES = ['sacrebleu>=2.4', 'rouge-score>=0.1.2']
HF = ['torch>=2.6', 'transformers>=5.0', 'peft>=0.18']
TEST = [
    'pytest>=8.3',
    'pytest-xdist>=3.6',
    'setuptools>=77',
    'ruff>=0.9',
    'hypothesis>=6.112',
    'nbformat>=5.10',
    'nbclient>=0.10',
    'ipykernel>=6.29',
    *GGUF,
    *HF,
    *REFERENCES,
]

setup(
    name='perl-rlhf',
    version='0.1.0',
    description='Parameter-efficient reinforcement learning from human feedback, in JAX and Flax.',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text()
    if pathlib.Path(__file__).with_name('README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    # A wheel has the experiment files as perl/configs; a checkout keeps them in configs.
    packages=[*find_packages(include=['perl', 'perl.*']), 'perl.configs'],
    package_dir={'perl.configs': 'configs'},
    entry_points={'console_scripts': ['perl-rlhf=perl.cli:main']},
    install_requires=[
        'absl-py>=2.1',
        'array_record>=0.8',
        'chex>=0.1.90',
        'etils[epath,epy]>=1.12',
        'flax>=0.12',
        'grain>=0.2.15',
        'importlib_resources>=6.4',
        'jax>=0.10',
        'jinja2>=3.1.6',
        'matplotlib>=3.9',
        'ml-collections>=1.0',
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.30',
        'protobuf>=5.0',
        'pyarrow>=17',
        'qwix>=0.1.8',
        'safetensors>=0.5',
        'scikit-learn>=1.5',
        'sentencepiece>=0.2',
        'tensorboardX>=2.6',
        'tensorflow-datasets>=4.9.9',
        'tokenizers>=0.21',
        'tqdm>=4.66',
    ],
    extras_require={
        'test': TEST,
        'gguf': GGUF,
        'hf': HF,
        'references': REFERENCES,
        'notebooks': ['jupyterlab>=4.2', 'nbclient>=0.10', 'ipykernel>=6.29'],
        'peers': [*HF, 'trl>=1.0', 'datasets>=3.0', 'accelerate>=1.2'],
        'cuda': ['jax[cuda13]>=0.10'],
        'tpu': ['jax[tpu]>=0.10'],
    },
)
