"""A module under its name of the release before: it warns, and is the module of today."""

from __future__ import annotations

import subprocess
import sys


def test_an_old_name_is_the_same_module_and_warns_where_it_is_imported() -> None:
    code = "import tttstream.models.encoders as old, tttstream\nassert old is tttstream.encoders"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    warnings = [line for line in done.stderr.splitlines() if "Deprecation" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("<string>:1: DeprecationWarning: tttstream.models.encoders is now tttstream.encoders")
