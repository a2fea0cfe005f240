#!/usr/bin/env python
"""The figure of README.md from the forecasts of a demo run: `make demo`, then `.venv/bin/python tools/figure.py [runs/demo]`."""
import sys
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pandas as pd
import battnb

ROOT = Path(__file__).resolve().parent.parent


def main(run=ROOT/'runs'/'demo', most=4):
    "Cells spread over the range of fade, each with what was known, what came after, the teacher's band and the firmware's forecast."
    ahead = pd.read_parquet(Path(run)/'forecasts.parquet')
    fleet = battnb.load('fleet')
    ahead = ahead[ahead.cell_id.str.startswith('SIM_LARGE') & ahead.cell_id.isin(fleet.ids)]
    fade = ahead.groupby('cell_id').soh.agg(lambda s: s.iloc[0] - s.iloc[-1]).sort_values()
    cells = [fade.index[int(k*(len(fade)-1))] for k in (.2, .5, .8, .95)][:most]
    fig, axes = plt.subplots(1, len(cells), figsize=(3.1*len(cells), 2.6))
    for ax, cell in zip(axes, cells):
        a, rec = ahead[ahead.cell_id == cell], fleet.rows(cell)
        past = rec[(rec.cycle <= a.cutoff.iloc[0]) & (rec.cycle > a.cutoff.iloc[0]-400)]
        ax.plot(past.cycle, past.soh, color='.35', lw=1, label='known')
        ax.plot(a.cycle, a.soh, color='.7', lw=1, label='came after')
        ax.fill_between(a.cycle, a['teacher-lo-80'], a['teacher-hi-80'], alpha=.25, lw=0)
        ax.plot(a.cycle, a.teacher, 'C0', label='Battery-Timer, 80 % band')
        ax.plot(a.cycle, a['student int8'], 'C3--', lw=1.2, label='int8 firmware')
        ax.set(title=f'{cell} (simulated)', xlabel='cycle'); ax.title.set_fontsize(9)
    axes[0].set(ylabel='SOH / 1'); axes[0].legend(fontsize=7, frameon=False)
    fig.tight_layout()
    out = ROOT/'nbs'/'images'/'demo.png'
    out.parent.mkdir(exist_ok=True)
    fig.savefig(out, dpi=110, metadata={'Software': None})
    print(out.relative_to(ROOT))


if __name__ == '__main__': main(*sys.argv[1:2])
