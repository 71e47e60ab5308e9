"""`python -m sparring`: the same as the command `sparring`."""

from __future__ import annotations

import sys

from sparring.cli import main

sys.exit(main())
