"""Code that several test files use. Import it first, because it sets variables that libraries read on import."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and two pools of threads on two cores wait for each other
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
for _name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)
