"""The few lines that the modules of this example share. No SDK: Ion's whole interface is files."""

import json
import os
from pathlib import Path

ION = Path(os.environ.get("ION_DIR", "/ion"))
DATA = ION / "in" / "data"
OUT = ION / "out" / "data"


def values():
    """The event's values."""
    return {pair["key"]: pair["value"] for pair in json.loads((ION / "in" / "eventmeta.json").read_text())}


def publish(name, event_type, files, **data):
    """Closing the file commits the event."""
    document = {"eventType": event_type, "files": files, **data}
    (ION / "out" / "events" / f"{name}.json").write_text(json.dumps(document))


def keep_insights(**data):
    """Values to keep for analysis."""
    (ION / "out" / "insights.json").write_text(json.dumps(data))
