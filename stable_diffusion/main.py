"""The training command under the place that an older document gives it; see `main.py` in the folder above."""

import importlib.util
import sys
from pathlib import Path

# Configs name main.DataModuleFromConfig: whoever imports `main` gets the real one, not this file.
spec = importlib.util.spec_from_file_location("main", Path(__file__).resolve().parents[1] / "main.py")
sys.modules["main"] = main = importlib.util.module_from_spec(spec)
spec.loader.exec_module(main)

if __name__ == "__main__":
    main.run_main(main.main)
