"""Proves that the pip parts of the conda environments resolve, by the packages' metadata alone.

`python workflow/envs/resolve.py [FILE ...]` prints one line a file and exits 1 where one does not resolve. Nothing is
installed and no large wheel is fetched: uv reads the metadata that the index keeps beside them (PEP 658). Both files
take 8 s and 0.2 GB with an empty cache; pip's dry run downloads 1.6 GB for vLLM's alone.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [ROOT / "environment.yml", *sorted((ROOT / "workflow" / "envs").glob("*.yaml"))]
PLATFORM = "x86_64-manylinux_2_28"


def pip_part(file: Path) -> tuple[str, list[str]]:
    """Python's version and the pip requirements of a conda environment file."""
    listed = yaml.safe_load(file.read_text(encoding="utf-8"))["dependencies"]
    python = next(entry for entry in listed if isinstance(entry, str) and entry.startswith("python="))
    return python.partition("=")[2], [line for entry in listed if isinstance(entry, dict) for line in entry["pip"]]


def resolve(file: Path) -> tuple[list[str], str]:
    """The packages that a file's pip part comes to, pinned; where there are none, what uv says instead."""
    python, requirements = pip_part(file)
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--no-header", "--no-annotate", "--quiet"]
    command += ["--python-version", python, "--python-platform", PLATFORM]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, cwd=ROOT)
    return (done.stdout.splitlines() if done.returncode == 0 else []), done.stderr.strip()


def main(arguments: Sequence[str]) -> int:
    """Resolve the files, or all of the project's."""
    failed = 0
    for file in map(Path, arguments or FILES):
        start = time.monotonic()
        packages, error = resolve(file)
        result = f"{len(packages)} packages" if packages else f"does not resolve:\n{error}"
        print(f"{file}: {result} ({time.monotonic() - start:.0f} s)", flush=True)
        failed += not packages
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
