#!/usr/bin/env python
"""How long a new user waits: `battnb forecast`, `battnb life` and `import battnb` from a cold start, into results/timing.parquet.

usage: .venv/bin/python tools/timing.py [--repeat 3] [--cells 10 1000]
Every call is a process of its own. The cells are simulated ones, drawn again with noise; the best of some repetitions counts, since a busy machine only adds.
"""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {10: 4., 1000: 20.}        # seconds, on two cores


def cells_csv(n, path):
    "A cycle table of `n` cells of many lengths; its number of rows."
    from battnb.core import stream
    from battnb.data import load
    fleet, gen = load('fleet'), stream(0, 'timing')
    parts = []
    for k in range(n):
        rows = fleet.rows(fleet.ids[k % len(fleet)])
        parts.append(pd.DataFrame(dict(cell_id=f'cell {k:04d}', cycle=rows.cycle.to_numpy(), cap_ah=rows.cap_ah.to_numpy()*(1 + 2e-4*gen.normal(size=len(rows))))))
    t = pd.concat(parts).round(5)
    t.to_csv(path, index=False)
    return len(t)


def timed(args, cwd, repeat):
    "Least wall time and processor time of a command, in seconds."
    best = []
    for _ in range(repeat):
        before, t = os.times(), time.perf_counter()
        r = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True)
        if r.returncode: sys.exit(f'{args}: {r.stderr}')
        after = os.times()
        best.append((time.perf_counter() - t, after.children_user + after.children_system - before.children_user - before.children_system))
    return tuple(min(v) for v in zip(*best))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--repeat', type=int, default=3); ap.add_argument('--cells', type=int, nargs='+', default=list(LIMITS)); ap.add_argument('--out', type=Path, default=ROOT/'results')
    a = ap.parse_args()
    from battnb.core import save_results
    battnb, rows = Path(sys.executable).parent/'battnb', []
    with tempfile.TemporaryDirectory() as tmp:
        jobs = {('import battnb', 0): [sys.executable, '-c', 'import battnb'], ('battnb --help', 0): [battnb, '--help']}
        for n in a.cells:
            size = cells_csv(n, Path(tmp)/f'{n}.csv')
            print(f'{n} cells, {size:,} rows')
            jobs[f'forecast, {n} cells', n] = [battnb, 'forecast', f'{n}.csv', '-o', 'out.parquet']
        jobs[f'life, {min(a.cells)} cells', 0] = [battnb, 'life', f'{min(a.cells)}.csv', '-o', 'out.parquet']
        for (what, n), args in jobs.items():
            wall, cpu = timed(args, tmp, a.repeat)
            print(f'{what:24} {wall:6.2f} s wall, {cpu:6.2f} s processor' + (f'   (limit {LIMITS[n]:g} s)' if n in LIMITS else ''), flush=True)
            rows += [dict(study='timing', dataset='SIMULATED', cell_id=what, model='battery-timer', seed=0, metric=m, value=v) for m, v in (('wall s', wall), ('processor s', cpu))]
    save_results(pd.DataFrame(rows), a.out/'timing.parquet', dict(repeat=a.repeat, cells=a.cells, cores=os.cpu_count(), load=round(os.getloadavg()[0], 1)))


if __name__ == '__main__': main()
