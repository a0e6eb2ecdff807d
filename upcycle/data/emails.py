# SPDX-License-Identifier: Apache-2.0
"""E-mails as a text-to-text task: spam or ham."""

from collections.abc import Iterator
import email
import html
from pathlib import Path
import re

from upcycle.data import packages
from upcycle.data.text_splits import Example

MEMBERS = r'package/spam-assassin/data/[a-z0-9-]+/[^/]*\.txt'
CHARACTERS = 1000
OPENING = 40


def spam(path: Path) -> Iterator[Example]:
  """The beginning of an e-mail's body, without its headers: spam or ham?

  E-mails that differ in capitals, digits and punctuation alone are one, and
  those that begin alike, as the issues of a newsletter do, in one split.
  """
  seen = set()
  for name, raw in packages.members(path, MEMBERS):
    text = body(raw)[:CHARACTERS].strip()
    key = re.sub(r'[^a-z]+', ' ', text.lower()).strip()
    if key and key not in seen:
      seen.add(key)
      target = 'spam' if '/data/spam' in name else 'ham'
      yield Example(key[:OPENING], f'spam email: {text}', target)


def body(raw: bytes) -> str:
  """The first text of an e-mail in one line, without tags if it is HTML."""
  for part in email.message_from_bytes(raw).walk():
    if part.get_content_maintype() == 'text':
      # The files have been written as UTF-8, whatever their headers say.
      text = (part.get_payload(decode=True) or b'').decode('utf-8', 'ignore')
      if part.get_content_subtype() == 'html':
        tags = r'(?is)<(style|script)\b.*?</\1>|<!--.*?-->|<[^>]*>'
        text = html.unescape(re.sub(tags, ' ', text))
      return ' '.join(text.split())
  return ''
