"""The command line as processes: what a shell sees, for good input, for every kind of bad input, in pipes, and when killed."""
import io, json, os, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest

N = 60
def table(**cols): return pd.DataFrame(dict(cell_id=np.repeat(['A', 'B'], N), cycle=np.tile(np.arange(1, N+1), 2), cap_ah=np.tile(2 - .002*np.arange(N), 2)) | cols)

def spoilt(column, value, row=70):
    t = table(); t[column] = t[column].astype(object); t.loc[row, column] = value
    return t

@pytest.fixture(scope='session')
def base(tmp_path_factory):
    from battnb.timer import BatteryTimer, BatteryTimerCfg
    return str(BatteryTimer(BatteryTimerCfg(d=16, layers=1, heads=2, ff=32)).save_pretrained(tmp_path_factory.mktemp('m')/'tiny-timer'))

@pytest.fixture
def cli():
    "Run battnb; returns the finished process. A traceback is always a failure."
    def run(*args, stdin=None, ok=None, **env):
        full = {k: v for k, v in {**os.environ, 'OMP_NUM_THREADS': '1', **env}.items() if v is not None}
        binary = isinstance(stdin, bytes)
        r = subprocess.run(['battnb', *map(str, args)], input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, capture_output=True, text=not binary, env=full, timeout=300)
        err = r.stderr.decode() if binary else r.stderr
        assert 'Traceback' not in err, err
        if ok is not None: assert r.returncode == ok, f'{args} ended with {r.returncode}\n{r.stdout[-2000:]}\n{err[-2000:]}'
        return r
    return run

@pytest.fixture
def good(tmp_path): table().to_csv(tmp_path/'cells.csv', index=False); return tmp_path/'cells.csv'


# ---------------------------------------------------------------- start
def imported(*args):
    code = f'import sys; sys.argv = ["battnb", *{args!r}]\ntry:\n    from battnb.app import main; main()\nexcept SystemExit: pass\nprint(*(m for m in ("torch", "pandas", "sklearn", "peft", "matplotlib") if m in sys.modules), file=sys.stderr)'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr.splitlines()[-1].split()

def test_nothing_heavy_before_it_is_needed(good):
    assert imported('--help') == [] and imported('forecast', '--help') == []
    assert not {'torch', 'sklearn', 'peft', 'matplotlib'} & set(imported('check', str(good)))

def test_help_is_fast_and_has_examples(cli):
    begin = time.monotonic(); top = cli('--help', ok=0).stdout
    assert time.monotonic() - begin < 3                                         # about .2 s on an idle machine
    for command in ('check', 'forecast', 'life', 'synth', 'run', 'deploy', 'models', 'data', 'rerun'):
        assert command in top
        text = cli(command, '--help', ok=0).stdout
        assert 'Examples:\n  battnb' in text or 'Examples:\n    battnb' in text, text
    assert cli('-h', ok=0).stdout == top

@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_shell_completion(cli, shell):
    assert 'battnb' in cli('--show-completion', shell, ok=0, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION='1').stdout       # whatever shell runs this test
    words = cli(_BATTNB_COMPLETE='complete_bash', COMP_WORDS='battnb forecast x.csv --model ', COMP_CWORD='4').stdout.split()
    assert 'battery-timer' in words and 'persistence' in words
    assert {'forecast', 'life', 'synth'} <= set(cli(_BATTNB_COMPLETE='complete_bash', COMP_WORDS='battnb ', COMP_CWORD='1').stdout.split())

@pytest.mark.parametrize('args', [('forecast',), ('nope',), ('forecast', 'x.csv', '--horizon', 'many'), ('check', '--nope'), ('forecast', 'x.csv', '--horizon', '0')])
def test_wrong_usage_is_2(cli, args):
    r = cli(*args, ok=2)
    assert r.stdout == '' and 'Usage: battnb' in r.stderr


# ---------------------------------------------------------------- check
def test_check_json(cli, good):
    rows = json.loads(cli('check', good, '--json', ok=0).stdout)
    assert [set(r) for r in rows] == [{'cell_id', 'n_cycles', 'cap_ah_first', 'cap_ah_last', 'problems'}]*2
    assert rows[0] | dict(problems=0) == dict(cell_id='A', n_cycles=N, cap_ah_first=2.0, cap_ah_last=round(2 - .002*(N-1), 5), problems=0) and rows[0]['problems'] == []

BAD = {
    'missing column': (table().drop(columns='cap_ah'), 'capacity'), 'no cycle column': (table().drop(columns='cycle'), 'cycle'),
    'NaN': (spoilt('cap_ah', np.nan), 'cell B, cycle 11'), 'negative': (spoilt('cap_ah', -1.1), 'got -1.1'), 'zero': (spoilt('cap_ah', 0.), 'must be > 0'),
    'duplicate cycle': (spoilt('cycle', 5), 'more than once'), 'non-numeric': (spoilt('cap_ah', 'broken'), 'broken'), 'infinite': (spoilt('cap_ah', np.inf), 'cell B, cycle 11'),
    'ten rows': (table().groupby('cell_id').head(10), '10'), 'one unit per cell': (spoilt('cap_ah', 1800.), 'unit')}

@pytest.mark.parametrize('kind', BAD)
def test_bad_tables(cli, tmp_path, kind, base):
    df, said = BAD[kind]
    df.to_csv(tmp_path/'bad.csv', index=False)
    r = cli('check', '--json', tmp_path/'bad.csv', ok=1); assert any(said in p for row in json.loads(r.stdout) for p in row['problems'])
    r = cli('forecast', tmp_path/'bad.csv', '-m', base, ok=1)
    assert r.stdout == '' and said in r.stderr.splitlines()[-1] and r.stderr.splitlines()[-1].startswith('battnb: ')

def parquet_bytes(): import io; b = io.BytesIO(); table().to_parquet(b); return b.getvalue()

FILES = {'empty.csv': (b'', 'is empty'), 'header.csv': (b'cell_id,cycle,cap_ah\n', 'no rows'), 'cut.parquet': (lambda: parquet_bytes()[:800], 'Parquet'), 'noise.bin': (bytes(range(256))*20, ''),
         'page.csv': (b'<!DOCTYPE html><html>log in', 'web page'), 'prose.csv': (b'just some words\nand no table\n', ''), 'pickle.csv': (b'\x80\x04\x95abc', 'pickle'),
         'wide.csv': (b'a,' * 30000 + b'b\n1\n', ''), 'bomb.csv.gz': (lambda: __import__('gzip').compress(b'0'*30_000_000), '')}

@pytest.mark.parametrize('name', FILES)
def test_bad_files(cli, tmp_path, name):
    data, said = FILES[name]
    (tmp_path/name).write_bytes(data() if callable(data) else data)
    for args in (('check', tmp_path/name), ('life', tmp_path/name, '-m', 'linear-20')):
        r = cli(*args, ok=1)
        assert said in r.stdout + r.stderr and len(r.stderr.splitlines()) == 1, r.stderr

def test_no_such_file_and_a_folder_without_data(cli, tmp_path):
    assert 'there is no file' in cli('forecast', tmp_path/'nowhere.csv', ok=1).stderr
    (tmp_path/'d').mkdir()
    assert 'no files' in cli('check', tmp_path/'d', ok=1).stderr

def test_mah_is_noticed_and_said(cli, tmp_path):
    table(cap_ah=np.tile(2000 - 2.*np.arange(N), 2)).to_csv(tmp_path/'mah.csv', index=False)
    rows = json.loads(cli('check', '--json', tmp_path/'mah.csv', ok=0).stdout)
    assert rows[0]['cap_ah_first'] == 2.0 and 'mAh' in rows[0]['problems'][0]
    assert 'mAh' in cli('forecast', tmp_path/'mah.csv', '-m', 'linear-20', ok=0).stderr

def test_drop_leaves_out_and_says_so(cli, tmp_path):
    pd.concat([spoilt('cap_ah', -1.), table().head(10).assign(cell_id='C')]).to_csv(tmp_path/'bad.csv', index=False)
    r = cli('forecast', tmp_path/'bad.csv', '-m', 'linear-20', '--drop', '-n', 3, ok=0)
    assert 'cycle 11' in r.stderr and 'cell C' in r.stderr and 'left out' in r.stderr
    assert [line.split(',')[0] for line in r.stdout.splitlines()[1:]] == ['A']*3 + ['B']*3


# ---------------------------------------------------------------- results
def test_pipes_files_and_json_agree(cli, good, tmp_path, base):
    args = ('-m', base, '-n', 12, '-l', 80)
    out = cli('forecast', good, *args, ok=0).stdout
    piped = cli('forecast', '-', *args, stdin=good.read_text(), ok=0).stdout
    assert out == piped and len(out.splitlines()) == 25
    js = json.loads(cli('forecast', good, *args, '--json', ok=0).stdout)
    for suffix in ('csv', 'parquet'): assert cli('forecast', good, *args, '-o', tmp_path/f'out.{suffix}', ok=0).stdout == ''
    csv, pq = pd.read_csv(tmp_path/'out.csv'), pd.read_parquet(tmp_path/'out.parquet')
    assert list(csv) == list(pq) == list(js[0]) == ['cell_id', 'cutoff', 'cycle', 'tiny-timer', 'tiny-timer-lo-80', 'tiny-timer-hi-80']
    np.testing.assert_allclose(csv.iloc[:, 3:], pq.iloc[:, 3:], rtol=1e-6); np.testing.assert_allclose(pd.DataFrame(js).iloc[:, 3:], pq.iloc[:, 3:], atol=1e-6)
    assert json.loads(cli('check', '-', '--json', stdin=parquet_bytes(), ok=0).stdout)[1]['n_cycles'] == N

def test_bands_for_curves_and_without_the_past(cli, good, base):
    width = {}
    for args in ((), ('--static',), ('--band', 'curve')):
        rows = json.loads(cli('forecast', good, '-m', base, '-n', 12, '-l', 80, '--json', *args, ok=0).stdout)
        width[args] = np.mean([r['tiny-timer-hi-80'] - r['tiny-timer-lo-80'] for r in rows])
    assert len(set(width.values())) >= 2 and all(w > 0 for w in width.values())
    assert "band must be 'point' or 'curve', got 'cell'" in cli('forecast', good, '-m', base, '--band', 'cell', ok=1).stderr

def test_quiet_when_nobody_watches(cli, good, base):
    "No progress bar where standard error is a file; remarks only where there is something to remark."
    assert cli('forecast', good, '-m', 'linear-20', '-o', 'out.csv', '-l', 80, ok=0).stderr.count('\r') == 0

def test_synth(cli, tmp_path):
    "Without the shipped model a sentence; with it, cells that go into every other command."
    from battnb.core import weights_dir
    assert 'draws no cells' in cli('synth', '-n', 2, '-m', 'liquid-24', ok=1).stderr
    if not (weights_dir()/'diffbatt').is_dir(): pytest.skip('no DiffBatt weights in this checkout')
    for name in ('a', 'b'): cli('synth', '-n', 4, '--seed', 3, '-o', tmp_path/f'{name}.parquet', ok=0)
    t = pd.read_parquet(tmp_path/'a.parquet')
    assert t.equals(pd.read_parquet(tmp_path/'b.parquet')) and t.cell_id.nunique() == 4 and t.soh.between(.5, 1.1).all()
    assert len(json.loads(cli('check', tmp_path/'a.parquet', '--json', ok=0).stdout)) == 4
    rows = json.loads(cli('life', tmp_path/'a.parquet', '-m', 'diffbatt', '--at', 60, '--json', ok=0).stdout)
    assert len(rows) == 4 and list(rows[0]) == ['cell_id', 'cutoff', 'eol_cycle', 'rul', 'lo', 'hi', 'censored', 'reason']

def test_sources_are_listed_and_what_cannot_be_fetched_is_said(cli):
    rows = json.loads(cli('data', '--sources', '--json', ok=0).stdout)
    assert {'name', 'licence', 'citation', 'page'} <= set(rows[0]) and len(rows) > 10
    assert 'fetched by hand from' in cli('data', '--fetch', 'sunwoda', ok=1).stderr
    assert 'no source is called' in cli('data', '--fetch', 'nope', ok=1).stderr

def test_a_pipe_that_closes_early_is_no_error(good):
    r = subprocess.run(f'battnb forecast {good} -m persistence -n 5000 | head -2', shell=True, capture_output=True, text=True)
    assert len(r.stdout.splitlines()) == 2 and 'Traceback' not in r.stderr and 'Broken' not in r.stderr and 'Exception' not in r.stderr

def test_formulas_and_unicode_in_names(cli, tmp_path):
    names = ['=HYPERLINK("http://x")', '+49', '@SUM(A1)', 'Zelle Ü 电池', '-7', '../../etc/passwd', '<script>alert(1)</script>']
    pd.concat([table().head(N).assign(cell_id=n) for n in names]).to_csv(tmp_path/'Zellen Ü.csv', index=False)
    cli('life', tmp_path/'Zellen Ü.csv', '-m', 'linear-20', '-o', tmp_path/'aus gabe.csv', ok=0)
    got = pd.read_csv(tmp_path/'aus gabe.csv', dtype=str).cell_id.tolist()
    assert got == ['\'=HYPERLINK("http://x")', '+49', "'@SUM(A1)", 'Zelle Ü 电池', '-7', '../../etc/passwd', '<script>alert(1)</script>']
    assert [x['cell_id'] for x in json.loads(cli('life', tmp_path/'Zellen Ü.csv', '-m', 'linear-20', '--json', ok=0).stdout)] == names
    assert {p.name for p in tmp_path.iterdir()} == {'Zellen Ü.csv', 'aus gabe.csv'}

def test_life_table(cli, good):
    rows = json.loads(cli('life', good, '-m', 'linear-48', '--json', ok=0).stdout)
    assert list(rows[0]) == ['cell_id', 'cutoff', 'eol_cycle', 'rul', 'lo', 'hi', 'censored', 'reason'] and abs(rows[0]['eol_cycle'] - 202) <= 2
    assert 'knows no spread' in cli('life', good, '-m', 'linear-48').stderr

@pytest.mark.parametrize('out, said', [('x.xlsx', '.parquet, .csv or .json'), ('cells.csv/x.csv', 'cannot write'), ('/proc/x.csv', 'cannot write'), ('.', 'output files end')])
def test_places_that_cannot_be_written(cli, good, out, said):
    before = good.read_bytes()
    assert said in cli('forecast', good, '-m', 'persistence', '-o', out, ok=1).stderr and good.read_bytes() == before

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_full_disk_is_one_sentence(good):
    r = subprocess.run(f'battnb forecast {good} -m persistence -n 3000 > /dev/full', shell=True, capture_output=True, text=True)
    assert r.returncode == 1 and 'No space left' in r.stderr and 'Traceback' not in r.stderr

def test_a_failed_write_keeps_the_old_file(cli, good, tmp_path):
    (tmp_path/'out.csv').write_text('precious'); os.chmod(tmp_path/'out.csv', 0o444)
    cli('forecast', good, '-m', 'nope', '-o', tmp_path/'out.csv', ok=1)
    assert (tmp_path/'out.csv').read_text() == 'precious'

def test_models_and_data(cli, tmp_path):
    assert isinstance(json.loads(cli('models', '--json', ok=0).stdout), list)
    rows = json.loads(cli('data', '--json', BATTNB_DATA=None, ok=0).stdout)
    assert rows[0]['name'] == 'fleet' and rows[0]['kind'] == 'simulated' and rows[0]['cells'] > 50 and {'matr', 'calce'} <= {r['name'] for r in rows}
    assert 'BATTNB_DATA must name an existing folder' in cli('data', BATTNB_DATA=str(tmp_path/'no'), ok=1).stderr

def test_the_default_model_forecasts_ten_cells(cli, tmp_path):
    from battnb.core import weights_dir
    if not (weights_dir()/'battery-timer').is_dir(): pytest.skip('no default weights in this checkout')
    pd.concat([table().head(N).assign(cell_id=f'c{k}') for k in range(10)]).to_csv(tmp_path/'ten.csv', index=False)
    out = cli('forecast', tmp_path/'ten.csv', ok=0).stdout
    assert len(out.splitlines()) == 961 and out.startswith('cell_id,cutoff,cycle,battery-timer,battery-timer-lo-80,battery-timer-hi-80,battery-timer-lo-95')


# ---------------------------------------------------------------- deploy
def test_deploy(cli, tmp_path):
    from battnb.evaluation import fit_ridge
    from battnb.data import load
    from battnb.windows import make_windows
    fit_ridge(make_windows(load('fleet').take(load('fleet').ids[:6]), stride=96)).save_pretrained(tmp_path/'my ridge')
    r = cli('deploy', tmp_path/'my ridge', '-o', tmp_path/'fw', '--json', '--checks', 11, ok=0)
    got = json.loads(r.stdout)
    assert list(got) == ['checked', 'mismatches', 'instructions', 'flash_bytes', 'ram_bytes', 'stack_bytes', 'ms_low', 'ms_high']
    assert got['mismatches'] == 0 and got['checked'] >= 1000 and (tmp_path/'fw'/'model.h').is_file() and json.loads((tmp_path/'fw'/'verification.json').read_text())['mismatches'] == 0

def test_deploy_refuses(cli, tmp_path, base):
    assert 'is a rule' in cli('deploy', 'persistence', '-o', tmp_path/'f', ok=1).stderr
    assert 'neither a folder' in cli('deploy', 'nope', '-o', tmp_path/'f', ok=1).stderr
    assert 'cannot become firmware' in cli('deploy', base, '-o', tmp_path/'f', ok=1).stderr


# ---------------------------------------------------------------- run
@pytest.fixture(scope='session')
def own(tmp_path_factory):
    from battnb.data import load
    fleet = load('fleet')
    path = tmp_path_factory.mktemp('own')/'meine Zellen.csv'
    two = fleet.take([i for i in fleet.ids if 300 < len(fleet.soh(i)) < 500][:2]).cycles[['cell_id', 'cycle', 'cap_ah', 'soh']]
    two.assign(cell_id='meine ' + two.cell_id.astype(str)).to_csv(path, index=False)
    return path

def start(own, out, base): # with an interrupt that is heard, even where this test runs in the background
    return subprocess.Popen(['battnb', 'run', str(own), '--out', str(out), '--preset', 'tiny', '--base', base], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

def test_killed_and_resumed_gives_the_same_numbers(cli, own, base, tmp_path):
    "kill -9 as soon as the students are being trained; then once more when the choice is being made."
    for mark in ('3/7', '4/7'):
        p = start(own, tmp_path/'killed', base)
        for line in p.stderr:
            if line.startswith(mark) and line.rstrip().endswith('…'): break
        time.sleep(.5); p.send_signal(signal.SIGKILL); p.wait()
        assert not (tmp_path/'killed'/'summary.json').exists()
    r = cli('run', own, '--out', tmp_path/'killed', '--preset', 'tiny', '--base', base, ok=0)
    assert r.stdout.strip().endswith('report.html') and '2/7 teacher: kept' in r.stderr and '3/7 students: kept' in r.stderr
    cli('run', own, '--out', tmp_path/'whole', '--preset', 'tiny', '--base', base, ok=0)
    one, two = (json.loads((tmp_path/n/'summary.json').read_text()) for n in ('killed', 'whole'))
    for s in (one, two): s['provenance'].pop('commit')                          # of the checkout, which may move while tests run
    assert one == two
    for name in ('forecasts.parquet', 'life.parquet', 'firmware/model.json', 'firmware/model.h', 'student/model.safetensors'):
        assert (tmp_path/'killed'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes(), name
    again = cli('run', own, '--out', tmp_path/'whole', '--preset', 'tiny', '--base', base, '--json', ok=0)
    assert json.loads(again.stdout) == json.loads((tmp_path/'whole'/'summary.json').read_text()) and again.stderr.count(': kept') == 7
    assert 'other settings' in cli('run', own, '--out', tmp_path/'whole', '--preset', 'tiny', '--base', base, '--seed', 5, ok=1).stderr
    assert not [p for p in tmp_path.rglob('.*') if p.name.startswith('.') and p.is_file()], 'temporary files are left behind'

def test_interrupt_is_130_and_says_what_next(own, base, tmp_path):
    p = start(own, tmp_path/'out', base)
    for line in p.stderr:
        if line.startswith('2/7'): break
    time.sleep(.5); p.send_signal(signal.SIGINT)
    err = p.stderr.read()
    assert p.wait(60) == 130 and 'continues where it stopped' in err and 'Traceback' not in err

def test_interrupt_inside_a_loading_module_is_an_interrupt_too(tmp_path):
    "Compiled modules turn the KeyboardInterrupt of their loading into an ImportError: that once ended with 1 and a traceback."
    code = """if True:
        import signal, typer, battnb.app as app
        def work():
            try: signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt: raise ImportError('initialization failed') from None
        app.app = lambda *_, **__: work()
        app.main(['check'])"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert r.returncode == 130 and 'continues where it stopped' in r.stderr and 'Traceback' not in r.stderr

def test_run_refuses(cli, own, tmp_path):
    assert 'give the cells once' in cli('run', own, '--data', own, ok=1).stderr
    assert 'there is no file' in cli('run', 'nowhere.csv', '-o', tmp_path/'x', ok=1).stderr
    table().groupby('cell_id').head(8).to_csv(tmp_path/'short.csv', index=False)
    assert 'needs' in cli('run', tmp_path/'short.csv', '--preset', 'tiny', '-o', tmp_path/'x', ok=1).stderr.splitlines()[-1]


# ---------------------------------------------------------------- rerun
def notebook(path):
    import nbformat as nf
    new = nf.v4
    cells = [new.new_code_cell("lam = 0.02\nname = 'a'", metadata={'tags': ['parameters']}), new.new_code_cell("assert lam < 1, f'lam must be < 1, got {lam}'\nprint(lam, name)")]
    nf.write(new.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), path)
    return path

def test_rerun(cli, tmp_path):
    import nbformat
    nb = notebook(tmp_path/'99_toy.ipynb')
    r = cli('rerun', nb, '-p', 'lam', '0.05', '-p', 'name', 'b c', '-o', tmp_path/'done.ipynb', ok=0)
    assert r.stderr.splitlines() == ["running 99_toy.ipynb with lam=0.05, name='b c'"]     # nothing of the kernel's own
    assert r.stdout.strip().endswith('done.ipynb') and nbformat.read(tmp_path/'done.ipynb', 4).cells[-1].outputs[0].text == '0.05 b c\n'
    assert "no parameter 'lamb'; it has: lam, name" in cli('rerun', nb, '-p', 'lamb', '1', ok=1).stderr
    assert 'lam must be < 1, got 3' in cli('rerun', nb, '-p', 'lam', '3', '-o', tmp_path/'done.ipynb', ok=1).stderr
    assert 'no study is called' in cli('rerun', 'nope', ok=1).stderr


def test_check_of_a_raw_file_counts_its_cycles(cli, tmp_path):
    "Two cycles are no record to forecast, but a measurement: usable, with the capacities of the full discharges."
    t, rows = 0., []
    for cycle in (1, 2):
        for current, hours, v0, v1 in ((1., 1., 3.0, 4.2), (-1., 1 - .01*cycle, 4.2, 3.0)):
            for k in np.linspace(0, 1, 61): rows.append((t + 3600*hours*k, cycle, current, v0 + (v1-v0)*k))
            t += 3600*hours + 10
    pd.DataFrame(rows, columns=['Test Time / s', 'Cycle Count / 1', 'Current / A', 'Voltage / V']).to_csv(tmp_path/'two.bdf.csv', index=False)
    (row,) = json.loads(cli('check', '--json', tmp_path/'two.bdf.csv', ok=0).stdout)
    assert (row['n_cycles'], row['n_full']) == (2, 2)
    assert row['cap_ah_first'] == pytest.approx(.99, abs=.005) and row['cap_ah_last'] == pytest.approx(.98, abs=.005)


# ---------------------------------------------------------------- files of other houses, as a user would hand them in
@pytest.mark.parametrize('name', ['german_mah', 'retention', 'overlap_resume', 'wide_rows', 'xlsx_title_rows', 'nan_tail', 'sum_row'])
def test_messy_tables_become_forecasts_and_lives(tmp_path, name):
    "What cannot be used is refused with the way out named; with it, the rest is forecast."
    import torch
    from test_foreign import TAB
    from typer.testing import CliRunner
    from battnb.app import app
    path = tmp_path/f'{name}.csv'; path.write_bytes(TAB[name])
    for command, more in (('forecast', ['-n', '12']), ('life', [])):
        r = CliRunner().invoke(app, [command, str(path), *more])
        if name in ('nan_tail', 'sum_row'):
            assert 'is unusable: cell' in str(r.exception) and '--drop leaves out' in str(r.exception)
            r = CliRunner().invoke(app, [command, str(path), *more, '--drop'])
        assert r.exit_code == 0, (r.exception, r.stderr)
        t = pd.read_csv(io.StringIO(r.stdout))
        if command == 'forecast': assert len(t) == 12*t.cell_id.nunique() and t['battery-timer'].between(.85, 1).all() and (t['battery-timer-lo-80'] <= t['battery-timer-hi-80']).all()
        else: assert (t.cutoff == 60).all() and t.lo.notna().all() and (t.lo <= t.eol_cycle.fillna(1e9)).all() and t.reason.str.len().max() < 130
    torch.set_num_threads(1)
