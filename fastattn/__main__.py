"""`python -m fastattn` is the command `fastattn`."""

import sys

from .cli import main

sys.exit(main())
