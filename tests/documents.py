"""What the repository says in words: README.md and the pages of docs/."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def published() -> str:
  """The text of all of them, one after another."""
  pages = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
  return '\n'.join(page.read_text(encoding='utf-8') for page in pages)
