"""Taskmaster-3 ticketing: buying cinema tickets, with API calls, and thumbs for single agent turns.

From TM-3-2020/reward of github.com/google-research-datasets/Taskmaster (CC BY 4.0), released with
PERL (Sidahmed et al. 2024, arXiv 2403.10704): 3,667 judged turns in 8 files, 15.6 % up. The judged
turns give labelled responses, preferences and prompts. The dialogues they stand in (the longest
contexts, each with its generation if approved) give documents and demonstrations, so that all
stages run on these files. Mind that these dialogues contain approved turns of the same dialogue: a
base that is pretrained on a fold's dialogues has seen some of its answers, so cross-validate reward
models over a base that has not.
"""

import functools

from perl.data.sets import _taskmaster as taskmaster
from perl.data.sets import _taskmaster_files as files

APIS = {name: frozenset(arguments.split()) for name, arguments in {
  'book_tickets': 'name.movie name.theater time.showing date.showing num.tickets seating',
  'check_tickets':
    'name.movie name.theater time.showing date.showing num.tickets seating time.preference',
  'find_movies':
    'location name.theater name.genre type.screening date.release description.other name.person '
    'name.character review.audience review.critic rating.movies',
  'find_showtimes':
    'name.movie name.theater date.showing type.screening time.preference location',
  'find_theaters': 'location type.screening name.movie',
  'get_movie_attribute':
    'name.movie attribute name.genre name.person name.character date.release description.plot '
    'duration.movie review.audience review.critic rating.movie',
  'resolve_location': 'location',
  'resolve_movie': 'name.movie',
  'resolve_theater': 'name.theater location',
}.items()}
"""The APIs of the ticket office and their arguments: TM-3-2020/ontology/apis.json."""
_FILES = files.numbered('TM-3-2020/reward', 'reward', 8)
SOURCE = files.source('taskmaster_ticketing', dialogues=(_FILES, files.approved_dialogues),
                      thumbs=(_FILES, files.thumbs))
KINDS = taskmaster.KINDS
load = taskmaster.loader(SOURCE)
response_metrics = functools.partial(taskmaster.response_metrics, apis=APIS)
"""(prompt, response, reference) -> exact_match, valid_api_call, api_accuracy."""
