"""What can go wrong around a run: no space, no permission, interruption, damaged and hostile files. Each ends in one sentence, and nothing is lost."""
import json, os, resource, shutil, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest
from battnb.core import InputError

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='limits and signals of a Unix')
N = 60

def table(n=2, rows=N): return pd.DataFrame(dict(cell_id=np.repeat([f'c{k}' for k in range(n)], rows), cycle=np.tile(np.arange(1, rows+1), n), cap_ah=np.tile(2 - .002*np.arange(rows), n)))

@pytest.fixture
def good(tmp_path): table().to_csv(tmp_path/'cells.csv', index=False); return tmp_path/'cells.csv'

def battnb(*args, limit=None, **kw):
    "The command in a process; `limit` is the largest file it may write, in bytes, as on a disk that fills up."
    def before(): resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    r = subprocess.run(['battnb', *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=before if limit else None, timeout=300, **kw)
    assert 'Traceback' not in r.stderr, r.stderr
    return r

def said(r): return r.stderr.splitlines()[-1]


# ---------------------------------------------------------------- space and permission
@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_no_space_for_a_result(good, tmp_path, suffix):
    out = tmp_path/f'out.{suffix}'
    out.write_text('precious')
    r = battnb('forecast', good, '-m', 'linear-20', '-n', 3000, '-o', out, limit=4096)
    assert r.returncode == 1 and said(r).startswith('battnb: cannot write') and 'too large' in said(r).lower()
    assert out.read_text() == 'precious' and {p.name for p in tmp_path.iterdir()} == {'cells.csv', out.name}, 'the old file stays, no half of a new one'

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_no_space_on_standard_output(good):
    with open('/dev/full', 'w') as full: r = subprocess.run(['battnb', 'life', str(good), '-m', 'linear-20'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert r.returncode == 1 and 'No space left' in r.stderr and 'Traceback' not in r.stderr

def test_no_space_in_a_run_then_space_again(own, base, tmp_path):
    "The run stops with a sentence; with space again it goes on from the steps that were done and ends as if nothing had been."
    args = ('run', own, '--out', tmp_path/'r', '--preset', 'tiny', '--base', base)
    r = battnb(*args, limit=9000)
    assert r.returncode == 1 and said(r).startswith('battnb: ') and not (tmp_path/'r'/'summary.json').exists(), r.stderr
    assert '1/7 data:' in r.stderr
    r = battnb(*args)
    assert r.returncode == 0 and '1/7 data: kept' in r.stderr, r.stderr
    assert json.loads((tmp_path/'r'/'summary.json').read_text())['firmware']['mismatches'] == 0

@pytest.mark.skipif(not os.path.exists('/proc/version'), reason='needs a folder in which nobody may write')
@pytest.mark.parametrize('args', [('forecast', '-m', 'linear-20', '-o', '/proc/x/out.csv'), ('run', '--preset', 'tiny', '--out', '/proc/x')])
def test_read_only_output(good, args):
    r = battnb(args[0], good, *args[1:])
    assert r.returncode == 1 and 'cannot write' in said(r), r.stderr


# ---------------------------------------------------------------- interruption
def test_interrupted_forecast_leaves_nothing(tmp_path):
    table(1500, 400).to_parquet(tmp_path/'many.parquet')                 # work for a good while on a fast machine, too
    p = subprocess.Popen(['battnb', 'forecast', str(tmp_path/'many.parquet'), '-o', str(tmp_path/'out.csv'), '-n', '4000'], stderr=subprocess.PIPE, text=True)
    time.sleep(2.5); p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=120)[1]
    assert p.returncode in (130, -2) and 'Traceback' not in err, (p.returncode, err)
    assert {f.name for f in tmp_path.iterdir()} == {'many.parquet'}


# ---------------------------------------------------------------- damaged folders
@pytest.fixture(scope='session')
def base(tmp_path_factory):
    from battnb.timer import BatteryTimer, BatteryTimerCfg
    return BatteryTimer(BatteryTimerCfg(d=16, layers=1, heads=2, ff=32)).save_pretrained(tmp_path_factory.mktemp('m')/'tiny-timer')

@pytest.fixture(scope='session')
def own(tmp_path_factory):
    from battnb.data import load
    fleet = load('fleet')
    path = tmp_path_factory.mktemp('own')/'Zellen Ü 电池.csv'
    fleet.take([i for i in fleet.ids if 300 < len(fleet.soh(i)) < 500][:2]).cycles[['cell_id', 'cycle', 'cap_ah', 'soh']].assign(cell_id=lambda t: 'meine ' + t.cell_id.astype(str)).to_csv(path, index=False)
    return path

def test_damaged_checkpoint_is_named(tmp_path):
    "A training that finds a broken checkpoint says which file it is and does not start over in silence."
    import torch
    from battnb.training import fit
    def batches(step): return torch.ones(4, 3), torch.zeros(4, 1)
    def train(steps): return fit(torch.nn.Linear(3, 1), batches, torch.nn.functional.mse_loss, steps=steps, lr=.1, ckpt=tmp_path/'c.pt')
    train(3)
    (tmp_path/'c.pt').write_bytes((tmp_path/'c.pt').read_bytes()[:100])
    with pytest.raises((InputError, ValueError), match='c.pt'): train(6)

@pytest.mark.parametrize('name, content', [('model.safetensors', b'\x00'*40), ('model.safetensors', b''), ('config.json', b'{"arch": "battery-timer"'), ('config.json', b'[]'), ('config.json', b'{"arch": "gpt"}'),
                                           ('conformal.json', b'{"format": "other"}'), ('conformal.json', b'\xff\xfe'), ('config.json', b'{"arch": "diffbatt"}')])
def test_damaged_model_folder(base, tmp_path, name, content):
    from battnb import forecast
    shutil.copytree(base, tmp_path/'m'); (tmp_path/'m'/name).write_bytes(content)
    with pytest.raises(InputError): forecast(table(), model=tmp_path/'m')

def test_weights_of_another_size(base, tmp_path):
    from battnb import forecast
    shutil.copytree(base, tmp_path/'m')
    cfg = json.loads((tmp_path/'m'/'config.json').read_text()); (tmp_path/'m'/'config.json').write_text(json.dumps(cfg | dict(d=32)))
    with pytest.raises(InputError): forecast(table(), model=tmp_path/'m')

def test_a_pickle_among_the_weights_is_never_opened(base, tmp_path):
    import pickle
    from battnb import forecast
    class Boom:
        def __reduce__(self): return (os.system, (f'touch {tmp_path}/owned',))
    shutil.copytree(base, tmp_path/'m'); (tmp_path/'m'/'pytorch_model.bin').write_bytes(pickle.dumps(Boom())); (tmp_path/'m'/'model.safetensors').unlink()
    with pytest.raises(InputError): forecast(table(), model=tmp_path/'m')
    assert not (tmp_path/'owned').exists()


# ---------------------------------------------------------------- hostile files
def parquet_of_many_rows(path):
    import pyarrow as pa, pyarrow.parquet as pq
    t = pa.table(dict(cell_id=pa.array(['a']).take(pa.array(np.zeros(2_000_000, int))), cycle=np.ones(2_000_000, int), cap_ah=np.ones(2_000_000)))
    with pq.ParquetWriter(path, t.schema, compression='zstd') as w:
        for _ in range(40): w.write_table(t)

HOSTILE = {'headers.csv': lambda p: p.write_bytes(b','.join(b'h%d' % k for k in range(200_000)) + b'\n1\n'),
           'one line.csv': lambda p: p.write_bytes(b'cell_id,cycle,cap_ah\n' + b'x'*20_000_000),
           'bomb.parquet': parquet_of_many_rows,
           'bomb.csv.gz': lambda p: p.write_bytes(__import__('gzip').compress(b'a,1,1\n'*20_000_000)),
           'nul.csv': lambda p: p.write_bytes(b'cell_id,cycle,cap_ah\n' + b'\x00'*10_000),
           'quotes.csv': lambda p: p.write_bytes(b'cell_id,cycle,cap_ah\n"' + b'a,1,1\n'*200_000)}

@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_tables_are_refused_in_bounded_memory(tmp_path, name):
    HOSTILE[name](tmp_path/name)
    code = ("import resource, subprocess, sys; p = subprocess.run(['battnb', 'check', sys.argv[1]], capture_output=True, text=True); "
            "print(p.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss//1024); print(p.stderr)")
    r = subprocess.run([sys.executable, '-c', code, str(tmp_path/name)], capture_output=True, text=True, timeout=300)
    (status, megabytes), err = map(int, r.stdout.splitlines()[0].split()), r.stdout
    assert status == 1 and 'Traceback' not in err, err
    assert megabytes < 1500, f'{megabytes} MB for a file of {(tmp_path/name).stat().st_size/1e6:.1f} MB'

def test_names_are_names_everywhere(tmp_path):
    "Path tricks, markup, formulas and scripts of the world in the name of a cell: in the table, in the report, never in a path."
    import battnb as b
    names = ['../../escape', '<img src=x onerror=alert(1)>', '=1+1', 'Zelle Ü 电池', "a'b\"c"]
    df = pd.concat([table(1).assign(cell_id=n) for n in names]); df.to_parquet(tmp_path/'n.parquet')
    for odd in ('text that runs \u202ebackwards', 'a\tb', 'x'*300):
        with pytest.raises(InputError, match='printable'): b.forecast(table(1).assign(cell_id=odd), model='linear-20', level=())
    fc = b.forecast(tmp_path/'n.parquet', h=5, model='linear-20', level=())
    html = b.show(fc, tmp_path/'n.parquet')._repr_html_()
    assert '<img' not in html and '&lt;img' in html
    assert {p.name for p in tmp_path.iterdir()} == {'n.parquet'} and not (tmp_path.parent.parent/'escape').exists()
