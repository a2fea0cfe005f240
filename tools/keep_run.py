#!/usr/bin/env python
"""Keep the figures of a finished run in results/: `battnb run --data DIR --out runs/real`, then `tools/keep_run.py runs/real real_run`.

Copies the tidy scores and their provenance, and writes what the firmware costs; README.md is filled from these files."""
import json, shutil, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ('instructions', 'flash_bytes', 'ram_bytes', 'stack_bytes', 'ms_low', 'ms_high', 'checked', 'mismatches')


def main(run, name):
    run, results = Path(run), ROOT/'results'
    for suffix in ('parquet', 'json'): shutil.copy(run/f'results.{suffix}', results/f'{name}.{suffix}')
    summary = json.loads((run/'summary.json').read_text())
    kept = dict(figures={'model': summary['firmware']['summary']} | {k: summary['firmware'][k] for k in FIGURES},
                students=summary['choice']['table'], chosen=summary['choice']['chosen'], search=summary['teacher']['search'], coverage=summary['coverage'])
    (results/f'{name}_firmware.json').write_text(json.dumps(kept, indent=1))
    print(f'results/{name}.parquet, .json and {name}_firmware.json')


if __name__ == '__main__': main(*sys.argv[1:3])
