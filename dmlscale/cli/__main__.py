"""``python -m dmlscale.cli``, for where no command was installed."""

import sys

from dmlscale.cli import main

sys.exit(main())
