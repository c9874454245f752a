"""`python -m tttstream` is the program `tttstream`."""

import sys

from tttstream.cli.main import main

sys.exit(main())
