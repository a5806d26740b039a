"""Training on the cluster: model, alignment, data, recipes, export; no robot imports it."""

import logging

# transformers and peft import bitsandbytes wherever it is installed, which then tells of a kernel
# for CPUs that it would fetch from a hub: nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
