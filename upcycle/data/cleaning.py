# SPDX-License-Identifier: Apache-2.0
"""From the files of a package to clean documents, one function a kind of file.

A cleaner takes (name, content) pairs in a fixed order and yields documents.
"""

import bz2
from collections.abc import Iterable, Iterator
import gzip
import html
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

Files = Iterable[tuple[str, bytes]]


class Document(NamedTuple):
  name: str
  text: str


def plain(files: Files) -> Iterator[Document]:
  """Text files as they are; the name is that of the file."""
  for name, raw in files:
    text = raw.decode('utf-8-sig').replace('\r\n', '\n')
    yield Document(Path(name).stem, text.strip())


def _strings(node: Any) -> Iterator[str]:
  """Every string in nested dicts and lists, in their order."""
  if isinstance(node, str):
    yield node
  elif isinstance(node, dict):
    for value in node.values():
      yield from _strings(value)
  elif isinstance(node, list):
    for value in node:
      yield from _strings(value)


def factbook(files: Files) -> Iterator[Document]:
  """The sentences among the fields of each country: those of 12 words."""
  for name, raw in files:
    texts = (' '.join(t.split()) for t in _strings(json.loads(raw)))
    lines = [t for t in texts if t.count(' ') >= 11]
    yield Document(Path(name).stem, '\n'.join(lines))


WIKI_RULES = [
  (re.compile(pattern, re.DOTALL), template)
  for pattern, template in (
    (r'<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>', ''),
    (r'<(math|gallery|source|code|timeline)\b.*?</\1>', ''),
    # Templates and tables nest: three passes from the inside out.
    *[(r'\{\{[^{}]*\}\}|\{\|[^{}]*\|\}', '')] * 3,
    *[(r'\[\[(?:File|Image|Category):[^\[\]]*\]\]', '')] * 2,
    (r'\[\[[a-z-]{2,12}:[^\[\]]*\]\]', ''),
    (r'\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]', r'\1'),
    (r'\[\[(?:File|Image|Category):[^\[\]]*\]\]', ''),
    (r'\[https?:[^ \]]* ?([^\]]*)\]', r'\1'),
    (r"'{2,}|<[^>]+>", ''),
    # What is left of headings, lists and tables.
    (r'(?m:^)[*#:;|!{}=][^\n]*', ''),
    (r'\(\s*[;,]\s*', '('),
    (r'\n\s*\n', '\n'),
  )
]


def wikipedia(files: Files) -> Iterator[Document]:
  """The running text of the articles in a compressed XML dump."""
  page = r'<title>(.*?)</title>.*?<text xml:space="preserve">(.*?)</text>'
  for _, raw in files:
    dump = bz2.decompress(raw).decode()
    for title, text in re.findall(page, dump, re.DOTALL):
      text = html.unescape(html.unescape(text))
      for pattern, template in WIKI_RULES:
        text = pattern.sub(template, text)
      if not text.lower().startswith('redirect') and len(text) > 200:
        yield Document(title, text.strip())


def documentation(files: Files) -> Iterator[Document]:
  """The documentation strings of each web service, every string once."""
  seen: set[str] = set()
  services: dict[str, list[str]] = {}
  for name, raw in files:
    if name.endswith('.gz'):
      raw = gzip.decompress(raw)
    for text in re.findall(
      r'"documentation":"((?:[^"\\]|\\.)*)"', raw.decode()
    ):
      text = re.sub(r'<[^>]+>', ' ', json.loads(f'"{text}"'))
      text = ' '.join(html.unescape(text).split())
      if text.count(' ') >= 11 and text not in seen:
        seen.add(text)
        services.setdefault(name.split('/')[2], []).append(text)
  for name, lines in services.items():
    yield Document(name, '\n'.join(lines))
