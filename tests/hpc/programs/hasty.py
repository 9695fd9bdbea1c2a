"""A service for which all times of its policies are tenths of a second: `python -m tests.hpc.programs.hasty ROLE ...`.

With CHRONOLOG_TEST_PACE=now everything is due at once, whatever the policy.
"""

import os
import sys

from chronolog_hpc.services.__main__ import main
from chronolog_hpc.services.policy import PACE, Pace, Tier

HASTY = Pace(
    {"hot": PACE.tiers["hot"], "normal": Tier(2**18, 1.0, 2**20, 0.5), "cold": Tier(2**16, 0.1, 0.0, 0.0)},
    look_s=0.05,
    expire_s=0.2,
)

NOW = Pace(dict.fromkeys(PACE.tiers, Tier(0.0, 0.0, 0.0, 0.0)), look_s=0.02, expire_s=0.2)

if __name__ == "__main__":
    sys.exit(main(pace=NOW if os.environ.get("CHRONOLOG_TEST_PACE") == "now" else HASTY))
