"""`python -m tttstream_agents` is the program tttstream-agents."""

import sys

from tttstream_agents.cli import main

sys.exit(main())
