"""Writes docs/live-openapi.json, the description of the API of `tttstream live`: python docs/openapi.py"""

import json
from pathlib import Path

from tttstream.live.web.api import Api
from tttstream.live.web.app import SOCKETS
from tttstream.live.web.operations import document

if __name__ == "__main__":
    operations = Api(None, None, None, None, None).operations()  # type: ignore[arg-type]
    text = json.dumps(document(operations, SOCKETS), indent=1, ensure_ascii=False)
    Path(__file__).with_name("live-openapi.json").write_text(text + "\n", encoding="utf-8")
