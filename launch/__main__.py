"""`python -m launch` is `transpooler`."""

import sys

from launch.cli import main

sys.exit(main())
