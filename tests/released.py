"""Where the weights that other projects released are: beside the checkout, or in METAOPT_RELEASED."""

import os
from pathlib import Path

RELEASED = Path(os.environ.get("METAOPT_RELEASED", Path(__file__).parents[2] / "shared" / "released"))
