"""A table of text cells as Markdown, CSV or LaTeX, with notes below it."""

import csv
import io
from collections.abc import Sequence

_LATEX = str.maketrans({
  '\\': r'\textbackslash{}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_',
  '{': r'\{', '}': r'\}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
  '±': r'$\pm$', '→': r'$\to$', '–': '--',
})


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
  """A pipe table, then a list of the notes."""
  row = lambda cells: '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
  lines = [row(head), '|' + ' --- |' * len(head), *map(row, body)]
  return '\n'.join([*lines, '', *(f'* {note}' for note in notes)]).rstrip()


def comma_separated(
  head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
  """CSV (RFC 4180 quoting); the notes are lines that begin with '# '."""
  out = io.StringIO()
  csv.writer(out, lineterminator='\n').writerows([head, *body])
  return '\n'.join([out.getvalue().rstrip('\n'), *(f'# {note}' for note in notes)])


def latex(head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
  """A tabular (booktabs); the notes are comments."""
  row = lambda cells: ' & '.join(cell.translate(_LATEX) for cell in cells) + r' \\'
  return '\n'.join([
    *(f'% {note}' for note in notes),
    rf'\begin{{tabular}}{{l{"r" * (len(head) - 2)}l}}', r'\toprule', row(head), r'\midrule',
    *map(row, body), r'\bottomrule', r'\end{tabular}',
  ])


FORMATS = {'markdown': markdown, 'csv': comma_separated, 'latex': latex}
