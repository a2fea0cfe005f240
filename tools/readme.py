#!/usr/bin/env python
"""Fill the marked blocks of README.md from results files, so that no number there is typed.

    <!-- chapters -->…<!-- /chapters -->            the chapter map, from titles and subtitles of the notebooks
    <!-- results:NAME -->…<!-- /results -->         results/NAME.parquet (columns of `battnb.core.RESULT_COLS`) as a table:
                                                    a row a model, a column a data set and metric
    <!-- results:NAME.path.to.key -->…              a value, a dict or a list of dicts out of results/NAME.json
    options after the name: metrics=mae,rmse  datasets=…  models=… (_ for a blank)  weigh=cells|windows  digits=2  rows=…  empty=…

`python tools/readme.py` writes, `--check` only says (exit 1) whether README.md is in step.
"""
import argparse, json, re, sys
from pathlib import Path

BLOCK = re.compile(r'(<!-- results:([\w/-]+)((?:\.[\w-]+)*)((?: \w+=[^ ]+)*) -->)(.*?)(<!-- /results -->)', re.S)
CHAPTERS = re.compile(r'(<!-- chapters -->)(.*?)(<!-- /chapters -->)', re.S)


def pipe(rows):
    "Rows of strings as a Markdown table; the first row is the head, the first column is text."
    head, *body = rows
    return '\n'.join(['| ' + ' | '.join(r) + ' |' for r in (head, ['---'] + ['---:']*(len(head)-1), *body)])


def shown(value, digits=2):
    "A value as a reader wants it: thousands separated, floats rounded."
    if isinstance(value, bool) or value is None: return {True: 'yes', False: 'no', None: '–'}[value]
    if isinstance(value, int): return f'{value:,}'
    if isinstance(value, float): return '–' if value != value else f'{value:.{digits}f}'
    return str(value)


def tidy_table(df, opts):
    "A tidy results table as `battnb.evaluation.summary` pools it; cells are counted, models keep the order of the file."
    for col, key in (('dataset', 'datasets'), ('model', 'models')):
        if key in opts: df = df[df[col].isin(opts[key].replace('_', ' ').split(',') + opts[key].split(','))]
    order, sets = (list(dict.fromkeys(df[c])) for c in ('model', 'dataset'))
    there = set(df['metric'])
    metrics = [k if k in there else k.replace('_', ' ') for k in opts.get('metrics', 'mae,rmse').split(',')]
    if set(df['metric']) >= {'mae', 'rmse', 'mape', 'r2', 'windows'}:
        from battnb.evaluation import summary
        pooled = summary(df, weigh=opts.get('weigh', 'cells'))
        value = lambda s, m, k: float(pooled[k].get((s, m), float('nan')))
    else:
        mean = df.groupby(['dataset', 'model', 'metric'])['value'].mean()
        value = lambda s, m, k: float(mean.get((s, m, k), float('nan')))
    cells = df[df['metric'].isin(metrics)].groupby('dataset')['cell_id'].nunique()
    head = ['model'] + [k.replace('_', ' ') if s == 'firmware' else f'{s} {k.upper()} ({cells[s]} cells)' for s in sets for k in metrics]
    return pipe([head] + [[m] + [shown(value(s, m, k), int(opts.get('digits', 2))) for s in sets for k in metrics] for m in order])


def json_value(value, opts):
    "A scalar inline, a dict as two columns, a list of dicts as a table."
    digits = int(opts.get('digits', 2))
    if isinstance(value, dict):
        keys = opts['rows'].split(',') if 'rows' in opts else list(value)
        return pipe([['figure', 'value']] + [[k.replace('_', ' '), shown(value[k], digits)] for k in keys])
    if isinstance(value, list): return pipe([list(value[0])] + [[shown(v, digits) for v in row.values()] for row in value])
    return shown(value, digits)


def block(root, name, keys, opts):
    "What belongs between the marks, or None where the results file does not exist yet."
    if keys:
        path = root/'results'/f'{name}.json'
        if not path.exists(): return None
        value = json.loads(path.read_text())
        for k in keys.strip('.').split('.'): value = value[int(k)] if isinstance(value, list) else value[k]
        return json_value(value, opts)
    path = root/'results'/f'{name}.parquet'
    if not path.exists(): return None
    import pandas as pd
    return tidy_table(pd.read_parquet(path), opts)


def chapter_map(root):
    "Title and subtitle of every chapter, in order."
    rows = [['chapter', 'what it is for']]
    for path in sorted((root/'nbs').glob('[0-9][0-9]_*.ipynb')):
        first = ''.join(next(c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown')['source'])
        m = re.match(r'# (.+?)\n+> (.+?)(\n|$)', first)
        rows.append([f'[{path.stem[:2]} {m.group(1)}](nbs/{path.name})', m.group(2).replace('|', '\\|')])
    return pipe(rows).replace('| --- | ---: |', '| --- | --- |')


def fill(text, root):
    "README.md as it should be."
    def one(m):
        opts = dict(o.split('=', 1) for o in m.group(4).split())
        body = block(root, m.group(2), m.group(3), opts)
        if body is None: body = opts.get('empty', 'not computed yet').replace('_', ' ')
        nl = '\n' if '\n' in body else ''
        return f'{m.group(1)}{nl}{body}{nl}{m.group(6)}'
    text = BLOCK.sub(one, text)
    return CHAPTERS.sub(lambda m: f'{m.group(1)}\n{chapter_map(root)}\n{m.group(3)}', text)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true', help='change nothing; exit 1 where README.md is not in step')
    ap.add_argument('--root', type=Path, default=Path(__file__).resolve().parent.parent)
    a = ap.parse_args()
    path = a.root/'README.md'
    old = path.read_text(); new = fill(old, a.root)
    if old == new: return
    if a.check: sys.exit('README.md is not in step with results/ and nbs/: run python tools/readme.py and commit')
    path.write_text(new)
    print('README.md filled', file=sys.stderr)


if __name__ == '__main__': main()
