"""Prints what Python's feedparser reads in each file of its own tests, one JSON line for a file.

    feedparser_corpus.py FOLDER

The test `corpus` compares these lines with what this crate reads. Addresses are made whole, and
nothing is cleaned, because this crate cleans no HTML either.
"""

import calendar
import json
import re
import sys
from pathlib import Path

import feedparser

HEADER = re.compile(rb"^Header:\s+([^:]+):(.+)$", re.MULTILINE)


def headers(data):
    """Returns the headers of the answer that a test file describes, in small letters."""
    data = data[:2048]
    for encoding in ("utf-16", "utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le"):
        if b"\0" in data:
            text = data.decode(encoding, "ignore").encode("utf-8", "ignore")
            if b"Description" in text:
                data = text
                break
    found = HEADER.findall(data)
    return {name.decode().strip().lower(): value.decode().strip() for name, value in found}


def date(parsed):
    """Returns seconds since 1970."""
    return calendar.timegm(parsed) if parsed else None


def text(of, key):
    """Returns a text with its type."""
    detail = of.get(key + "_detail") or {}
    value = of.get(key)
    return {"type": detail.get("type", "text/plain"), "value": value} if value else None


def authors(of):
    """Returns the authors that have anything."""
    keys = (("name", "name"), ("email", "email"), ("href", "url"))
    found = [{ours: one[theirs] for theirs, ours in keys if one.get(theirs)} for one in of.get("authors", [])]
    return [one for one in found if one]


def enclosure(link):
    """Returns a file that belongs to an item."""
    length = link.get("length", "")
    return {
        "url": link.get("href"),
        "type": link.get("type") or None,
        "length": int(length) if length.strip().isdigit() else None,
    }


def entry(of):
    """Returns one item."""
    content = of.get("content", [])
    summary = text(of, "summary")
    # feedparser copies the content of an item into its summary if it has none.
    if content and "summary_detail" not in of:
        summary = None
    return {
        "guid": of.get("id") or None,
        "link": of.get("link") or None,
        "title": text(of, "title"),
        "authors": authors(of),
        "published": date(of.get("published_parsed") or of.get("created_parsed")),
        "updated": date(dict.get(of, "updated_parsed")),
        "summary": summary,
        "content": {"type": content[0].get("type"), "value": content[0].value} if content and content[0].value else None,
        "categories": [tag.term for tag in of.get("tags", []) if tag.term],
        "enclosures": [enclosure(link) for link in of.get("links", []) if link.get("rel") == "enclosure" and link.get("href")],
    }


def main():
    folder = Path(sys.argv[1])
    for path in sorted(folder.rglob("*.xml")):
        data = path.read_bytes()
        given = headers(data)
        read = feedparser.parse(data, response_headers=given, sanitize_html=False, resolve_relative_uris=True)
        feed = read.feed
        print(
            json.dumps(
                {
                    "file": str(path.relative_to(folder)),
                    "headers": given,
                    "title": text(feed, "title"),
                    "link": feed.get("link") or None,
                    "language": feed.get("language") or None,
                    "authors": authors(feed),
                    "updated": date(dict.get(feed, "updated_parsed")),
                    "items": [entry(one) for one in read.entries],
                }
            )
        )


main()
