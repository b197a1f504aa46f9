"""Build the wheel, install it into empty environments, and use it there: the core alone, then with the command line.

    python tests/packaging/check_wheel.py [--constraint FILE] [--work FOLDER]

Takes minutes, and what pip does not have it downloads (torch). Run by the public workflow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
CARRIED = (
    "tapstudy/py.typed", "tapstudy/explorer/web/page.html", "tapstudy/_data/models/mnist-dit/model_index.json",
    "tapstudy/_data/study/emoji-flux/schedule.json",
)  # fmt: skip


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Run a command outside of the source tree and return what it says; with another exit code, end with that."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TAPSTUDY_DATA")}
    told = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if told.returncode != code:
        sys.exit(f"{' '.join(map(str, command))} ended with {told.returncode}:\n{told.stdout}{told.stderr}")
    return told.stdout + told.stderr if code else told.stdout


def check(condition: object, what: object) -> None:
    if not condition:
        sys.exit(f"the wheel fails: {what}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--constraint", type=Path, help="versions for pip")
    options.add_argument("--work", type=Path, help="keeps the wheel and the environment")
    asked = options.parse_args()
    limits = ["--constraint", asked.constraint.resolve()] if asked.constraint else []
    with TemporaryDirectory() as temporary:
        work = (asked.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", work / "dist", HERE.parents[1], cwd=work)
        (wheel,) = (work / "dist").glob("tapstudy-*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        check(set(CARRIED) <= set(names), f"{wheel.name} lacks {set(CARRIED) - set(names)}")
        check(not [name for name in names if name.startswith("tapstudy_training")], "it carries the training")
        print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.0f} MB")

        run(sys.executable, "-m", "venv", work / "env", cwd=work)
        python, command = work / "env" / "bin" / "python", work / "env" / "bin" / "tapstudy"
        run(python, "-m", "pip", "install", *limits, wheel, cwd=work)
        found = json.loads(run(python, HERE / "use_the_core.py", cwd=work).splitlines()[-1])
        check(found["mask"] == "FFF..F..F" and found["digit"] == [28, 28], found)
        check("pip install 'tapstudy[study]'" in run(command, "--help", cwd=work, code=2), "no hint for --help")
        print("the core accelerates a pipeline, and says what the command line needs")

        run(python, "-m", "pip", "install", *limits, f"tapstudy[study] @ {wheel.as_uri()}", cwd=work)
        run(python, "-m", "pip", "check", cwd=work)
        check("fit-schedule" in run(command, "--help", cwd=work), "--help")
        check(run(command, "--version", cwd=work).split()[1] == wheel.name.split("-")[1], "--version")
        check("clone of the repository" in run(command, "train", "mnist-dit", cwd=work, code=2), "train")
        run(command, "sample", "3", "--steps", "4", "--out", work / "digit.png", cwd=work)
        run(command, "record", work / "run.zarr", "--labels", "3", "--steps", "6", cwd=work)
        run(command, "explore", work / "run.zarr", "--out", work / "page.html", cwd=work)
        print("with 'study', the command line samples, records and explores")


if __name__ == "__main__":
    main()
