"""`python -m transpooler` is the command line."""

import sys

from transpooler.launch.cli import main

sys.exit(main())
