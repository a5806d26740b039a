"""The paper's WidowX benchmark: thirteen put-on-plate environments and eight boards to read.

All but `world`, `environment` and `expert` works without the simulator.
"""

import os
import sys
from pathlib import Path

# Read when ManiSkill is imported: scripts/vulkan puts the driver here where there is no GPU.
DRIVER = Path(sys.prefix) / "vulkan" / "lavapipe.json"
if DRIVER.is_file():
    os.environ.setdefault("VK_ICD_FILENAMES", str(DRIVER))
os.environ.setdefault("MS_SKIP_ASSET_DOWNLOAD_PROMPT", "1")
