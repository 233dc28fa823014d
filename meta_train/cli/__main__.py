"""``python -m meta_train.cli``: the command where it is not installed."""

import sys

from meta_train.cli import main

sys.exit(main())
