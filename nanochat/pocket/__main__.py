"""Write the pocket data into a folder and show some of it: `python -m nanochat.pocket FOLDER [SEED]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nanochat.pocket import content_hash, generate


def main(folder: str, seed: int = 0) -> None:
    """Generate, then print what was written."""
    start = time.perf_counter()
    counts = generate(Path(folder), seed)
    print(f"pocket data {content_hash(seed)}, seed {seed}, {time.perf_counter() - start:.1f} s")
    for name, rows in counts.items():
        print(f"  {name:36} {rows:7,} rows  {(Path(folder) / name).stat().st_size:10,} bytes")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python -m nanochat.pocket FOLDER [SEED]")
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 0)
