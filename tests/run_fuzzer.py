"""Lets a coverage-guided fuzzer loose on one of the targets.

python tests/run_fuzzer.py TARGET [options of libFuzzer]
"""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hatcli", "lmdb.verify"]):
    from fuzz_targets import TARGETS, try_one


def main():
    target, seed = TARGETS[sys.argv[1]]
    corpus = Path(tempfile.mkdtemp(prefix="hat-corpus-"))
    atexit.register(shutil.rmtree, corpus, ignore_errors=True)
    (corpus / "seed").write_bytes(seed())
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], lambda data: try_one(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
