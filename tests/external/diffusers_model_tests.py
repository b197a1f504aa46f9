"""Run diffusers' own tests of the supported transformers, with TAP at interval 1 on every model that they make.

`python tests/external/diffusers_model_tests.py PATH [pytest arguments]`, where PATH is a checkout of the release that
is installed. Every step is then a full one, so what passes without TAP must pass, but for tests of diffusers' caches
(TAP refuses a second one), of torch.compile in one graph (decisions between steps are made in Python) and of
parallel devices; they are left out.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LEFT_OUT = "not cache and not Cache and not compile and not Compile and not parallel and not Parallel"


def pytest_configure(config: Any) -> None:
    """Attach TAP to every supported model when it has been made. (This file is a plugin of the pytest that it runs.)"""
    import diffusers

    import tapstudy
    from tapstudy.instrument.adapters import ADAPTERS

    def attached(init: Any) -> Any:
        @functools.wraps(init)
        def make(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            tapstudy.apply_tap(self, tapstudy.TAPConfig(interval=1, warmup_steps=1))

        return make

    for name in ADAPTERS:
        if hasattr(diffusers, name):
            kind: Any = getattr(diffusers, name)
            kind.__init__ = attached(kind.__init__)


def tests_of(checkout: Path) -> list[Path]:
    """Return the files of a checkout that test a supported class."""
    from tapstudy.instrument.adapters import ADAPTERS

    folder = checkout / "tests" / "models" / "transformers"
    files = sorted(folder.glob("test_models_*.py"))
    if not files:
        raise SystemExit(f"{folder} holds no tests: give the path of a diffusers checkout")
    return [path for path in files if any(name in path.read_text() for name in ADAPTERS)]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    checkout, *options = sys.argv[1:]
    root = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root))
    files = [str(path.relative_to(checkout)) for path in tests_of(Path(checkout))]
    places = [str(Path(__file__).resolve().parent), str(root)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", Path(__file__).stem, "-k", LEFT_OUT, *files, *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    raise SystemExit(subprocess.run(command, cwd=checkout, env=environment).returncode)
