"""The old name of `tttstream.encoders`. It warns, and will be removed in 0.4."""

import sys
import warnings

from tttstream import encoders

warnings.warn("tttstream.models.encoders is now tttstream.encoders; it goes in 0.4", DeprecationWarning, stacklevel=2)
sys.modules[__name__] = encoders
