"""`python -m launcher` is `vlaunch`, for a checkout that is not installed."""

from __future__ import annotations

import sys

from launcher.cli import main

sys.exit(main())
