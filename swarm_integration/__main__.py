"""`python -m swarm_integration run ...`: the `swarm` command, whoever owns that script."""

import sys

from swarm_integration.cli import main

sys.exit(main())
