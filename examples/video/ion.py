"""The few lines that the modules of this example share. Ion has no SDK: its interface is files."""

import json
import os
from pathlib import Path

ION = Path(os.environ.get("ION_DIR", "/ion"))
DATA = ION / "in" / "data"
OUT = ION / "out" / "data"


def values():
    """Returns the event's values."""
    return {pair["key"]: pair["value"] for pair in json.loads((ION / "in" / "eventmeta.json").read_text())}


def publish(name, event_type, files, **data):
    """Writes an event file. Closing it commits the event."""
    document = {"eventType": event_type, "files": files, **data}
    (ION / "out" / "events" / f"{name}.json").write_text(json.dumps(document))


def keep_insights(**data):
    """Keeps values for analysis."""
    (ION / "out" / "insights.json").write_text(json.dumps(data))
