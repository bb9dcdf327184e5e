"""Prints what this Python needs: its version, its standard library's folders, shared libraries, a line each (Linux).

    python -I -S libraries.py

All extension modules of the standard library are imported; what is mapped afterwards is what they need. Runs outside
the sandbox, once, to know what to show inside (nanochat/sandbox.py); no code but the standard library's is run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig


def main() -> None:
    folder = sysconfig.get_config_var("DESTSHARED") or os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload")
    names = {name.split(".")[0] for name in os.listdir(folder)} if os.path.isdir(folder) else set()
    for name in sorted(names - {"_tkinter", "readline", "nis"}):
        if not name.startswith(("_test", "_xxtest", "xx")):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as f:
        mapped = {line.split(None, 5)[5].rstrip("\n") for line in f if line.count("/")}
    folders = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    print("{}.{}.{}".format(*sys.version_info[:3]), *sorted(folders), sep="\n")
    print("\n".join(sorted(path for path in mapped if ".so" in os.path.basename(path))))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
