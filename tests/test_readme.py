"""README numbers come from results files; its links lead somewhere."""
import json, re, sys
import pandas as pd
from conftest import ROOT

sys.path.insert(0, str(ROOT/'tools'))
import readme


def test_readme_is_in_step(sh): sh(sys.executable, ROOT/'tools'/'readme.py', '--check')


def test_local_links_exist():
    for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        for link in re.findall(r'\]\(([^)#]+)\)', (ROOT/name).read_text()):
            if '://' not in link: assert (ROOT/link).exists(), f'{name}: {link}'


def test_blocks_are_filled_from_files_and_stay_filled(tmp_path):
    (tmp_path/'results').mkdir(); (tmp_path/'nbs').mkdir()
    rows = [('s', d, f'c{i}', m, 0, k, v + i) for d in ('a', 'b') for m, v in (('naive', 1.), ('net', 3.)) for k in ('mae', 'rmse') for i in range(3)]
    pd.DataFrame(rows, columns=['study', 'dataset', 'cell_id', 'model', 'seed', 'metric', 'value']).to_parquet(tmp_path/'results'/'zs.parquet')
    (tmp_path/'results'/'fw.json').write_text(json.dumps({'figures': {'instructions': 12345, 'ms_low': .5}}))
    text = ('<!-- results:zs metrics=mae models=net,naive -->old<!-- /results --> takes <!-- results:fw.figures.instructions -->?<!-- /results --> '
            'and <!-- results:none -->1.23<!-- /results -->')
    out = readme.fill(text, tmp_path)
    assert '| model | a MAE (3 cells) | b MAE (3 cells) |' in out and '| naive | 2.00 | 2.00 |\n| net | 4.00 | 4.00 |' in out
    assert '-->12,345<!--' in out and '1.23' not in out and 'not computed yet' in out and 'old' not in out
    assert readme.fill(out, tmp_path) == out
