"""Tables from everywhere: dialects, bad input, hostile input, splits, labels and leaks; on real cells where BATTNB_DATA is set."""
import gzip, io, json, os, subprocess, sys, textwrap, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from battnb import data, labels, leaks
from battnb.core import InputError, stream
from battnb.data import Cells, concat, load, problems, read_cycles, report, split_cells, validate
from battnb.tables import read_table

K = np.arange(1, 61)
CAP = 1.1 - 1e-3*K
LONG = pd.DataFrame(dict(cell_id='A', cycle=K, cap_ah=CAP))
REAL = pytest.mark.skipif(not os.environ.get('BATTNB_DATA'), reason='BATTNB_DATA is not set')

def csv(df=LONG, **kw): return df.to_csv(index=False, **kw).encode()
def parquet(df=LONG):
    b = io.BytesIO(); df.to_parquet(b)
    return b.getvalue()
def said(cells): return ' | '.join(cells.notes.message)
def lines(fmt): return '\n'.join(fmt.format(k=k, c=c) for k, c in zip(K, CAP))


# ---------------------------------------------------------------- dialects
GOOD = {
    'plain': csv(), 'semicolon and comma': csv(sep=';', decimal=','), 'tabs': csv(sep='\t'), 'bars': csv(sep='|'), 'quoted comma': csv(decimal=',', quoting=1),
    'utf-16': LONG.to_csv(index=False).encode('utf-16'), 'byte-order mark': b'\xef\xbb\xbf' + csv(), 'latin': 'Zelle;Zyklus;Entladekapazität [Ah]\n'.encode('cp1252') + lines('A;{k};{c:.4f}').replace('.', ',').encode(),
    'gzip': gzip.compress(csv()), 'parquet': parquet(), 'parquet with index': parquet(LONG.set_index(['cell_id', 'cycle'])), 'preamble': b'Cycler 7\nOperator: me, myself\n\n' + csv(),
    'mAh in heading': csv(LONG.assign(cap_ah=CAP*1e3).rename(columns={'cap_ah': 'Discharge Capacity (mAh)'})), 'mAh under Ah': csv(LONG.assign(cap_ah=CAP*1e3)),
    'units in a line': b'cell,cycle,capacity\n,-,mAh\n' + lines('A,{k},{c}').encode().replace(b'1.0', b'10.0').replace(b'10.0', b'1.0'), 'units in fields': ('cell,cycle,capacity\n' + lines('A,{k},{c:.4f} Ah')).encode(),
    'wide columns': csv(LONG.pivot(index='cycle', columns='cell_id', values='cap_ah').reset_index()), 'wide rows': csv(LONG.pivot(index='cell_id', columns='cycle', values='cap_ah').reset_index()),
    'white space': ('cell cycle capacity\n' + lines('A   {k}  {c:.5f}')).encode(), 'windows lines': csv(lineterminator='\r\n'), 'trailing separators': ('cell,cycle,capacity\n' + lines('A,{k},{c:.5f},')).encode(),
    'index column': LONG.to_csv().encode(), 'shuffled': csv(LONG.sample(frac=1, random_state=0)), 'sep line': b'sep=;\n' + csv(sep=';'), 'blank lines': csv().replace(b'\n', b'\n\n'), 'data frame': LONG}

@pytest.mark.parametrize('dialect', [k for k in GOOD if k != 'units in a line'])
def test_every_dialect_gives_the_same_curve(dialect):
    got = read_cycles(GOOD[dialect], nominal_ah=1.1)
    assert got.ids == ['A'] and got.cycle('A').tolist() == K.tolist()
    np.testing.assert_allclose(got.soh('A'), CAP/1.1, atol=1e-4)
    assert got.cells.soh_ref[0] == 'nominal' and got.cells.cadence[0] == 'per_cycle'


@pytest.mark.parametrize('heading', ['capacity', 'Capacity (Ah)', 'capacity_Ah', 'QDischarge', 'Q_discharge', 'QD', 'Discharge_Capacity(Ah)', 'DChg. Cap.(Ah)', 'discharge capacity [Ah]', 'Discharge Capacity / Ah',
                                     'Entladekapazität', 'cap', 'Cap_dchg', 'discharge_capacity_ah', 'Capacity in Ah', 'dis_cap', 'Capacité (Ah)', 'Q dis', 'max capacity', 'CAPACITY(AH)'])
def test_capacity_by_many_names(heading): assert read_table(csv(LONG.rename(columns={'cap_ah': heading}))).df.cap_ah.iloc[0] == pytest.approx(CAP[0])

@pytest.mark.parametrize('heading', ['cycle', 'Cycle_Index', 'cycle number', 'cycleNumber', 'CycleID', 'Cycle No.', 'Cycle #', 'Zyklus', 'cyc', 'N', 'Cycle Count', 'Total Cycle', 'Week'])
def test_cycle_by_many_names(heading): assert read_table(csv(LONG.rename(columns={'cycle': heading}))).df.cycle.iloc[0] == 1

@pytest.mark.parametrize('heading', ['cell', 'Cell ID', 'cell_name', 'Battery', 'battery_id', 'Barcode', 'unique_id', 'Sample', 'Serial Number', 'Zelle', 'id', 'name', 'Channel'])
def test_cell_by_many_names(heading): assert read_table(csv(LONG.rename(columns={'cell_id': heading}))).df.cell_id.iloc[0] == 'A'

@pytest.mark.parametrize('heading, values', [('SOH', CAP/1.1), ('SOH (%)', CAP/1.1*100), ('State of Health', CAP/1.1*100), ('capacity_retention', CAP/1.1), ('Capacity (%)', CAP/1.1*100), ('relative capacity', CAP/1.1)])
def test_health_by_many_names(heading, values):
    got = read_cycles(csv(pd.DataFrame({'cell': 'A', 'cycle': K, heading: values})), nominal_ah=1.1)
    np.testing.assert_allclose(got.soh('A'), CAP/1.1, atol=1e-6); np.testing.assert_allclose(got.cycles.cap_ah, CAP, atol=1e-6)
    assert ('percent' in said(got)) == (values[0] > 2)


def test_every_decision_is_a_note():
    assert 'can only be mAh: divided by 1000 (cell A)' in said(read_cycles(GOOD['mAh under Ah']))
    assert 'capacity is in mAh, as stated' in said(read_cycles(GOOD['mAh in heading']))
    assert 'median of the first 5 cycles' in said(read_cycles(GOOD['plain']))
    assert 'no column for the cell' in said(read_cycles(csv(LONG.drop(columns='cell_id'))))
    assert 'not in cycle order, sorted: cell A' in said(read_cycles(GOOD['shuffled']))
    assert '3 lines above the header skipped' in said(read_cycles(GOOD['preamble']))
    assert "columns left out: 'remark'" in said(read_cycles(csv(LONG.assign(remark='fine'))))
    assert "could each be cap_ah: took 'QDischarge'" in said(read_cycles(csv(LONG.assign(QDischarge=CAP))))
    two = pd.concat([LONG, LONG.assign(cell_id='B', cap_ah=CAP*1e3)])
    got = read_cycles(csv(two), nominal_ah=1.1)
    assert '(cell B)' in said(got) and np.allclose(got.soh('A'), got.soh('B'))                  # judged cell by cell
    disagree = read_cycles(csv(LONG.assign(soh=np.linspace(1, .5, 60))))
    assert 'do not share one reference' in said(disagree)
    assert 'is the nominal capacity right?' in said(read_cycles(csv(), nominal_ah=11))
    blank = pd.DataFrame({'cycle': K, 'X': CAP, 'Y': CAP}).astype({'Y': object}); blank.loc[6, 'Y'] = ''
    assert 'cell Y: 1 blank field inside its record, left out: cycle 7' in said(read_cycles(csv(blank)))
    kelvin = read_cycles(csv(LONG.assign(**{'Temperature (K)': 298.15})))
    assert 'Kelvin' in said(kelvin) and np.allclose(kelvin.cycles.temperature_c, 25)


def test_columns_of_every_kind_of_pandas():
    odd = LONG.astype({'cycle': 'Int64', 'cap_ah': 'Float64', 'cell_id': 'category'})
    assert read_cycles(odd).cycle('A').tolist() == K.tolist()
    odd.loc[8, 'cap_ah'] = pd.NA
    with pytest.raises(InputError, match='cell A, cycle 9: cap_ah is missing'): read_cycles(odd)
    with pytest.raises(InputError, match="cap_ah must be a number, got '2024-01-01"): read_cycles(LONG.assign(cap_ah=pd.Timestamp('2024-01-01')))
    assert read_cycles(LONG.assign(cell_id=7)).ids == ['7'] and read_cycles(LONG.assign(cell_id=7.)).ids == ['7']


def test_repeated_index_labels_are_no_rows():
    two = pd.concat([LONG, LONG.assign(cell_id='B')])                                        # labels 0..59 twice
    assert two.index.duplicated().any()
    for table in (two, two.assign(soh=two.cap_ah/1.1), two.set_index(np.zeros(len(two), int)), two.set_index(['cell_id', 'cycle'])):
        got = read_cycles(table, nominal_ah=1.1)
        assert got.ids == ['A', 'B'] and np.allclose(got.soh('A'), CAP/1.1) and np.allclose(got.soh('B'), CAP/1.1)
    assert len(problems(two.assign(soh=two.cap_ah/1.1))) == 0 and len(validate(two.assign(soh=two.cap_ah/1.1))) == 120
    bad = two.assign(soh=two.cap_ah/1.1, cap_ah=np.where((two.cell_id == 'B') & (two.cycle == 9), -1., two.cap_ah))
    assert [(p['cell_id'], p['cycle']) for p in problems(bad) if p['severity'] == 'error'] == [('B', 9)]
    with pytest.raises(InputError, match='cell B, cycle 9: cap_ah must be > 0'): validate(bad)

def test_given_units_win():
    assert read_cycles(csv(LONG.assign(cap_ah=CAP*1e3)), unit='Ah').cycles.cap_ah[0] == pytest.approx(CAP[0]*1e3)
    small = read_cycles(csv(LONG.rename(columns={'cap_ah': 'capacity'})), unit='mAh')              # a coin cell
    assert small.cycles.cap_ah[0] == pytest.approx(CAP[0]/1e3)
    assert read_cycles(csv(LONG), nominal_ah={'A': 2.2}).soh('A')[0] == pytest.approx(CAP[0]/2.2)
    with pytest.raises(ValueError, match="unit must be one of"): read_cycles(csv(), unit='Wh')


# ---------------------------------------------------------------- bad input
def bad(**cols): return csv(LONG.assign(**cols))
def at(values, where, value): return np.where(K == where, value, values)
BAD = {
    'missing capacity': (csv(LONG.drop(columns='cap_ah').assign(foo='x')), "missing column capacity or soh; present: 'cell_id', 'cycle', 'foo'"),
    'missing cycle': (csv(LONG.drop(columns='cycle')), "missing column cycle; present: 'cell_id', 'cap_ah'"),
    'NaN': (bad(cap_ah=at(CAP, 9, np.nan)), 'cell A, cycle 9: cap_ah is missing'), 'negative': (bad(cap_ah=at(CAP, 9, -1.1)), 'cell A, cycle 9: cap_ah must be > 0 Ah and finite, got -1.1'),
    'zero': (bad(cap_ah=at(CAP, 9, 0)), 'cell A, cycle 9: cap_ah must be > 0 Ah and finite, got 0'), 'infinite': (bad(cap_ah=at(CAP, 9, np.inf)), 'got inf'),
    'text': (bad(cap_ah=at(CAP.astype(str), 9, 'Error!')), "cell A, cycle 9: cap_ah must be a number, got 'Error!'"),
    'duplicate': (bad(cycle=at(K, 9, 8)), 'cell A, cycle 8: the same cycle occurs more than once'), 'half cycle': (bad(cycle=K + .5), 'cycle must be a whole number'),
    'negative cycle': (bad(cycle=K - 5), 'cell A, cycle -4: cycle must be a whole number'), 'huge cycle': (bad(cycle=at(K, 9, 1e300)), 'from 0 to 10,000,000'),
    'no id': (bad(cell_id=at(['A']*60, 9, '')), 'a row without cell_id, cycle 9'), 'unit changes': (bad(cap_ah=np.where(K < 30, CAP, CAP*1e3)), 'cell A, cycle 30: cap_ah jumps from'),
    'ten rows': (csv(LONG.head(10)), 'cell A: needs at least 96 rows, got 10'), 'one row': (csv(LONG.head(1)), 'got 1'), 'empty': (b'', 'is empty'), 'header only': (b'cell,cycle,capacity\n', 'has a header but no rows'),
    'white': (b'\n \n\t\n', 'this is no table'), 'truncated parquet': (parquet()[:600], 'its end is missing: it is truncated'), 'damaged parquet': (parquet()[:20] + bytes(200) + parquet()[220:], 'damaged Parquet'),
    'truncated gzip': (gzip.compress(csv())[:100], 'damaged gzip'), 'too many fields': (csv() + b'A,61,1.0,7\n', 'no table|more fields than headings'), 'too few fields': (csv() + b'A,61\n', 'cycle 61: cap_ah is missing'),
    'no headings': (b'1,1.1\n2,1.09\n3,1.08\n', 'begins with numbers'), 'energy': (csv(LONG.rename(columns={'cap_ah': 'Capacity (Wh)'})), 'is in Wh, not in Ah or mAh'), 'two of one name': (b'cycle,cap,cap\n1,2,3\n2,3,4\n', 'two columns of one name'),
    'time series': (csv(pd.DataFrame(dict(cycle=1, voltage=3.2, current=np.ones(500), capacity=np.linspace(0, 1, 500)))), 'looks like a time series'),
    'no cell column': (csv(pd.concat([LONG]*3).drop(columns='cell_id')), 'each cycle several times and no column for the cell'), 'zip': (b'PK\3\4' + bytes(50), 'damaged spreadsheet'),
    'pickle': (b'\x80\x04\x95' + bytes(50), 'never opened because it can run code'), 'page': (b'<!DOCTYPE html><p>log in', 'web page'), 'noise': (bytes(range(256)), 'no binary format'),
    'negative nominal': (csv(LONG.assign(nominal_capacity=-1)), 'nominal capacity must be > 0'), 'percent and not': (bad(soh=at(CAP/1.1, 9, 97.)), 'cell A, cycle 9: soh must be a fraction in')}

@pytest.mark.parametrize('case', BAD)
def test_bad_input_names_cell_cycle_rule_and_value(case):
    source, says = BAD[case]
    with pytest.raises(InputError) as e: read_cycles(source, min_rows=96 if case == 'ten rows' else 2)
    assert any(s in str(e.value) for s in says.split('|')), str(e.value)
    assert '\n' not in str(e.value) and len(str(e.value)) < 1200


@pytest.mark.parametrize('path', ['', 'nowhere.csv', '.', '/dev/null', '/dev/zero', '/proc/self/mem', 'a\0b', 'x'*5000, '~nobody-here/x.csv', '../../../../no/such', 'file:///etc/passwd', 'http://x/y.csv', '|ls'])
def test_path_tricks(path):
    t = time.monotonic()
    with pytest.raises(InputError): read_cycles(path)
    assert time.monotonic() - t < 2

def test_a_pipe_behind_a_path_does_not_hang(tmp_path):
    os.mkfifo(tmp_path/'pipe.csv')
    with pytest.raises(InputError, match='no plain file'): read_cycles(tmp_path/'pipe.csv')

@pytest.mark.parametrize('source, says', [
    (b'cycle,' + b'x'*3_000_000, 'this is no table'), (b'c,'*50_000 + b'\n' + b'1,'*50_000 + b'\n', 'columns'), (b'"' + b'cycle,capacity\n1,1.1\n'*1000, ''), (b'a,b\n' + b'"'*10_001, ''),
    (b'cell,cycle,capacity\n\x1b[31mA,1,1.1\n\x1b[31mA,2,1.0\n', 'printable'), (b'cell,cycle,capacity\n' + b'y'*500 + b',1,1.1\n' + b'y'*500 + b',2,1.0\n', '200 printable'), (b'\xff\xfe\x00', 'damaged|no table|empty'),
    (gzip.compress(gzip.compress(b'a,b\n1,2\n', mtime=0), mtime=0), 'packed twice'), (b'PAR1PAR1', 'truncated|damaged'), (b'PAR1' + bytes(100) + b'\xff\xff\xff\x7fPAR1', 'damaged')])
def test_hostile_files_are_refused_quickly(source, says):
    t = time.process_time()                                                             # of this process: a busy machine is no fault of the reader
    with pytest.raises(InputError) as e: read_cycles(source)
    assert time.process_time() - t < 5 and any(s in str(e.value) for s in says.split('|')), str(e.value)

def test_a_gzip_bomb_and_a_parquet_that_promises_too_much(monkeypatch):
    monkeypatch.setattr('battnb.tables.MAX_BYTES', 10**6)
    with pytest.raises(InputError, match='unpacks to more than'): read_cycles(gzip.compress(bytes(10**7)))
    monkeypatch.setattr('battnb.tables.MAX_ROWS', 50)
    with pytest.raises(InputError, match='60 rows and 3 columns, more than'): read_cycles(parquet())

def test_names_cannot_inject_into_the_page():
    evil = '<script>alert(1)</script>'
    assert evil not in read_cycles(csv(LONG.assign(cell_id=evil)), name=evil)._repr_html_()

def test_standard_input():
    out = subprocess.run([sys.executable, '-c', "from battnb.data import read_cycles; c = read_cycles('-'); print(c.ids, len(c.cycles))"], input=csv(), capture_output=True)
    assert out.stdout.decode().strip() == "['A'] 60", out.stderr.decode()

@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_table_or_an_input_error(noise):
    for source in (noise, b'cell,cycle,capacity\n' + noise, csv()[:200] + noise, b'PAR1' + noise + b'PAR1'):
        try: read_cycles(source, errors='drop')
        except InputError: pass

@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(['A', 'B', '']), st.one_of(st.integers(-3, 30), st.just('x'), st.none()), st.one_of(st.floats(), st.just('bad'))), min_size=1, max_size=40))
def test_dropping_leaves_a_valid_table_and_names_every_row_left_out(rows):
    df = pd.DataFrame(rows, columns=['cell_id', 'cycle', 'cap_ah'])
    try: got = read_cycles(csv(df), errors='drop', nominal_ah=1.)
    except InputError: return
    assert not [p for p in problems(got.cycles) if p['severity'] == 'error']
    assert len(got.cycles) == len(df) or (got.notes.severity == 'error').any() or 'left out' in said(got)


def test_dropped_rows_and_cells_stay_on_record():
    df = pd.concat([LONG.assign(cap_ah=at(CAP, 9, -1)), LONG.assign(cell_id='B').head(1), LONG.assign(cell_id='C', cycle=at(K, 9, 8))])
    got = read_cycles(csv(df), errors='drop')
    assert got.ids == ['A', 'C'] and 9 not in got.cycle('A') and len(got.soh('C')) == 59
    rows = {r['cell_id']: r for r in report(got)}
    assert rows['B']['n_cycles'] == 0 and 'left out' in rows['B']['problems'][0]
    assert any('got -1' in m for m in rows['A']['problems']) and json.dumps(report(got))
    many = read_cycles(csv(LONG.assign(cap_ah=np.where(K % 2, CAP, -1))), errors='drop')
    assert (many.notes.severity == 'error').sum() == 30                             # all of them, not the first few


# ---------------------------------------------------------------- sets and splits
def fleet(n=20, rows=300, datasets=('x', 'y')):
    def one(i):
        gen, k = stream(i, 'cell'), np.arange(rows)
        soh = 1 - gen.uniform(1e-4, 4e-4)*k - gen.uniform(1e-9, 4e-9)*k**3 + gen.normal(0, 4e-4, rows)
        return pd.DataFrame(dict(cell_id=f'c{i}', cycle=k + 1, cap_ah=1.1*soh, soh=soh))
    y = pd.concat([one(i) for i in range(n)], ignore_index=True)
    return Cells(y, pd.DataFrame(dict(cell_id=[f'c{i}' for i in range(n)], dataset=[datasets[i % len(datasets)] for i in range(n)], group=[f'g{i % 5}' for i in range(n)], soh_ref='nominal', nominal_cap_ah=1.1)), 'fleet', False)

def test_split_covers_each_set_and_every_cell_once():
    f = fleet()
    for seed in range(20):
        parts = split_cells(f, seed=seed)
        assert sorted(sum((p.ids for p in parts.values()), [])) == sorted(f.ids)
        assert all(set(p.cells.dataset) == {'x', 'y'} for p in parts.values())
        groups = split_cells(f, .6, .2, .2, seed=seed, by='group')
        assert sum(p.cells.group.nunique() for p in groups.values()) == 5
    assert split_cells(f, seed=1)['test'].ids != split_cells(f, seed=2)['test'].ids
    more = concat([f, Cells(fleet(21).take(['c20']).cycles, fleet(21).take(['c20']).cells.assign(dataset='z'), 'z')], 'more')
    with pytest.raises(InputError, match='3 parts need 3 groups'): split_cells(more)

def test_frozen_and_picklable():
    import pickle
    f = fleet(4)
    with pytest.raises(Exception): f.name = 'other'
    again = pickle.loads(pickle.dumps(f))
    assert again.ids == f.ids and (again.soh('c2') == f.soh('c2')).all()

def test_leaks_are_found_under_any_disguise():
    f = fleet(12, 400)
    parts = split_cells(f, seed=0)
    assert len(leaks.check_split(parts)) == 0
    one = parts['train'].ids[0]
    base = parts['train'].rows(one)
    guises = {'rounded': base.assign(soh=base.soh.round(4)), 'every tenth row': base.iloc[::5], 'other reference': base.assign(soh=base.soh/.83), 'renumbered from 0': base.assign(cycle=base.cycle - 1),
              'beginning dropped': base.iloc[40:], 'end dropped': base.iloc[:330]}
    for guise, rows in guises.items():
        spy = Cells(rows.assign(cell_id='spy').reset_index(drop=True), pd.DataFrame(dict(cell_id=['spy'], dataset=['other'])), 'spy')
        found = leaks.check_split(dict(train=parts['train'], test=concat([parts['test'], spy], 'test')))
        assert found[['kind', 'cell_a', 'cell_b']].values.tolist() == [['same curve', one, 'spy']], guise
    short = fleet(8, 20)
    assert len(leaks.check_split(split_cells(short, .5, .25, .25))) == 0                         # short noisy records accuse nobody

def test_labels_never_see_the_future_and_never_invent():
    f = fleet(6, 400)
    whole, _ = labels.smooth(f)
    marked, _ = labels.mark_outliers(f)
    for n in (3, 10, 57, 200):
        head = Cells(f.cycles.groupby('cell_id', sort=False).head(n).reset_index(drop=True), f.cells, 'head')
        np.testing.assert_allclose(labels.smooth(head)[0].cycles.soh, whole.cycles.groupby('cell_id', sort=False).head(n).soh.to_numpy(), atol=1e-12)
        assert labels.mark_outliers(head)[0].cycles.outlier_flag.tolist() == marked.cycles.groupby('cell_id', sort=False).head(n).outlier_flag.tolist()
        t = labels.life_table(head)
        assert (t.eol_cycle.isna() == t.censored).all() and (t.eol_cycle.dropna() <= n).all() and (t.reason[t.censored] != '').all()


# ---------------------------------------------------------------- the real cells
@pytest.fixture(scope='module')
def real(): return {n: load(n) for n in data.NAMED}

@REAL
def test_every_named_set_loads_clean(real):
    assert sum(len(c) for c in real.values()) == 764 and sum(len(c.cycles) for c in real.values()) == 435_569
    for c in real.values(): assert not [p for p in problems(c.cycles) if p['severity'] == 'error'] and c.measured
    assert data.datasets().at_hand.sum() >= 14
    assert {k: len(v) for k, v in data.published_split(real['matr'], 'severson').items()} == dict(train=41, primary_test=42, secondary_test=40)
    assert {k: len(v) for k, v in data.published_split(real['hust'], 'batteryml-hust').items()} == dict(train=55, test=22)

TWINS = {('CRUHd_CALCE_004', 'CALCE_CS2_35'), ('CRUHd_CALCE_005', 'CALCE_CS2_36'), ('CRUHd_CALCE_007', 'CALCE_CS2_37'), ('CRUHd_CALCE_054', 'CALCE_CS2_38')}

@REAL
def test_the_overlap_of_cruh_with_calce_and_rwth_is_caught(real):
    for other, n, curves in (('calce', 13, TWINS), ('rwth', 48, set())):
        for parts in (dict(train=real['cruh_diffbatt'], test=real[other]), dict(train=real[other], test=real['cruh_diffbatt'])):
            found = leaks.check_split(parts); seen = found[found.kind == 'same curve']
            assert (found.kind == 'known overlap').sum() == n and len(found) == n + len(curves)
            assert {tuple(sorted(p, reverse=True)) for p in zip(seen.cell_a, seen.cell_b)} == curves      # by their curves alone
            with pytest.raises(InputError, match=f'CRUH_DIFFBATT contains cells of {other.upper()}'): leaks.assert_no_leak(parts)
        renamed = Cells(real['cruh_diffbatt'].cycles, real['cruh_diffbatt'].cells.assign(dataset='benchmark.csv'), 'benchmark')
        assert set(leaks.check_split(dict(train=renamed, test=real[other])).kind) - {'same curve'} == {'named after another set'}

def published(key): # rows of the DiffBatt arrays without their names; the names
    z = np.load(Path(os.environ['BATTNB_DATA'])/'early_dq.npz'); curves = z[f'orig_{key}_soh256']
    y = pd.concat([pd.DataFrame(dict(cell_id=f'anonymous {i}', cycle=1 + 10*np.arange(n := int((s > .01).sum())), cap_ah=s[:n], soh=s[:n])) for i, s in enumerate(curves)], ignore_index=True)
    return Cells(y, pd.DataFrame(dict(cell_id=y.cell_id.unique())), 'copy'), z[f'orig_{key}_cell_id']

@REAL
@pytest.mark.parametrize('key, name, least', [('matr_1_train', 'matr', 40), ('matr_1_test', 'matr', 38), ('matr_2_test', 'matr', 40), ('hust_train', 'hust', 55), ('hust_test', 'hust', 22)])
def test_published_copies_are_found_by_their_curves(real, key, name, least):
    copy, ids = published(key); found = leaks.same_curves(copy, real[name])
    right = [ids[int(a.split()[1])] == b for a, b in zip(found.cell_a, found.cell_b)]
    assert all(right) and len(right) >= least, (key, len(right), len(ids))

@REAL
@pytest.mark.parametrize('a, b', [('clo', 'matr'), ('hust', 'clo'), ('sunwoda', 'calce')])
def test_different_data_sets_accuse_nobody(real, a, b): assert len(leaks.same_curves(real[a], real[b])) == 0

@REAL
@pytest.mark.parametrize('name', ['matr', 'clo', 'hust', 'tju', 'sunwoda', 'sjtuie', 'ev20', 'nasa', 'rwth', 'oxford', 'sdu_2nd', 'snl_diffbatt', 'cruh_diffbatt'])
def test_clean_splits_accuse_nobody(real, name): assert len(leaks.check_split(split_cells(real[name], seed=0))) == 0

@REAL
def test_the_whole_table_validates_and_windows_in_three_seconds():
    "Processor time of a child process, so that a busy machine changes nothing and the bound is fixed; torch is imported before the clock starts."
    code = textwrap.dedent('''
        import json, time
        from battnb.data import NAMED, concat, load, validate
        from battnb.windows import make_windows
        load('calce'); t = time.process_time()
        sets = concat([load(n) for n in NAMED], 'all')
        validate(sets.cycles); checked = time.process_time() - t
        n = len(make_windows(sets, ctx=96, hor=96, stride=24, rows_are_steps=True))
        print(json.dumps(dict(cells=len(sets), windows=n, checked=checked, took=time.process_time() - t)))''')
    one = dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
    got = json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=one).stdout)
    print(got)
    assert got['cells'] == 764 and got['windows'] > 5000 and got['took'] < 3, got

@REAL
def test_the_table_read_as_a_file_is_the_table(real):
    c = real['calce']
    got = read_cycles(csv(c.cycles[['cell_id', 'cycle', 'cap_ah', 'soh']]), nominal_ah=1.1)
    assert got.ids == c.ids and all(np.allclose(got.soh(i), c.soh(i), atol=1e-5) for i in c.ids) and set(got.cells.soh_ref) == {'nominal'}

def test_load_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.delenv('BATTNB_DATA', raising=False)
    with pytest.raises(InputError, match='BATTNB_DATA.*data.matr.io'): load('matr')
    monkeypatch.setenv('BATTNB_DATA', str(tmp_path))
    with pytest.raises(InputError, match='cycles.parquet is not there'): load('matr')
    (tmp_path/'cycles.parquet').write_bytes(parquet()[:100])
    with pytest.raises(InputError, match='not a readable Parquet'): load('matr')
    with pytest.raises(InputError, match="no data set is called 'mater'"): load('mater')
