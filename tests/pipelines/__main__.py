from __future__ import annotations

import sys
import warnings

from tests.pipelines.tables import DOCS, LINES, row, rows_in, written


def main() -> int:
    """Try the lines whose names hold one of the words, or all, and put their rows into the tables."""
    words, failed = sys.argv[1:], []
    warnings.simplefilter("ignore")
    for line in LINES:
        if words and not any(word in line.name for word in words):
            continue
        if line.missing:
            failed.append(f"{line.name}: needs {', '.join(line.missing)}")
            continue
        try:
            made = row(line)
        except Exception as error:
            failed.append(f"{line.name}: {type(error).__name__}: {error}"[:400])
            print(failed[-1], flush=True)
            continue
        print(made, flush=True)
        text = DOCS.read_text()
        DOCS.write_text(written(text, rows_in(text) | {line.name: made}))
    print("\n".join(["", f"{len(failed)} failed", *failed]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
