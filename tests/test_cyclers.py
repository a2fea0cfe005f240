"Raw files of testers: real ones against their manifest, synthetic ones of every vendor, hostile ones, and a long one in little memory."
import gzip, io, json, os, pickle, subprocess, sys, textwrap, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from battnb.core import InputError
from battnb.coulomb import to_cycles
from battnb.meter import Meter, Raw
from battnb.curves import load_early, qv_matrix
from battnb.cyclers import cycles_from_file, cycles_from_folder, is_raw, read_raw
from battnb.headers import match_columns

RAW = Path(os.environ.get('BATTNB_DATA', '/nowhere'))/'raw'
real = pytest.mark.skipif(not RAW.is_dir(), reason='needs BATTNB_DATA/raw')
NDAX = 'TESTCELL0001-B2-2025-M50T_NewareNDA_Investigation'
SINTEF = 'SINTEF__SLPBA842124HV__2024-10-23__Rate_25degC__Neware__Time_Bug.bdf.csv'

# ---------------------------------------------------------------- a small cell that every vendor writes in his own way

def cell(n_cycles=4, step_s=36., fade=.01):
    "Columns t, i (> 0 charges), v, cycle, state, step, of a 1 Ah cell: charge C/2, rest, discharge 1C, rest."
    rows, t, step = [], 0., 0
    for k in range(n_cycles):
        for state, amps, ah in (('C', .5, 1 - fade*k), ('R', 0., .05), ('D', -1., 1 - fade*k), ('R', 0., .05)):
            n = max(int(round(ah/max(abs(amps), .5)*3600/step_s)), 2); step += 1
            for j in range(n + 1):
                x = j/n; v = {'C': 3 + 1.2*x, 'D': 4.2 - 1.2*x}.get(state, rows[-1][2] if rows else 3.)
                rows.append((t, amps, v, k + 1, state, step, abs(amps)*j*step_s/3600, j*step_s)); t += step_s if j < n else 0.
    return pd.DataFrame(rows, columns=['t', 'i', 'v', 'cycle', 'state', 'step', 'ah', 'step_t'])

CELL = cell(); CAPS = [1., .99, .98, .97]
clock = lambda s: f'{int(s//86400)}d {int(s%86400//3600):02d}:{int(s%3600//60):02d}:{s%60:05.2f}'
hms = lambda s: f'{int(s//3600):02d}:{int(s%3600//60):02d}:{s%60:06.3f}'
comma = lambda text: text.replace('.', ',')
when = lambda s: str(pd.Timestamp('2026-03-01') + pd.Timedelta(seconds=s))
def lines(header, row, preamble=''): return preamble + header + '\n' + ''.join(row(k, r) + '\n' for k, r in enumerate(CELL.itertuples()))

TEXTS = dict(
    arbin=lambda: lines('Data_Point,Test_Time(s),Date_Time,Step_Time(s),Step_Index,Cycle_Index,Current(A),Voltage(V),Charge_Capacity(Ah),Discharge_Capacity(Ah)',
        lambda k, r: f'{k},{r.t},{when(r.t)},{r.step_t},{r.step},{r.cycle},{r.i},{r.v:.5f},{chg[k]:.6f},{dis[k]:.6f}'),
    maccor=lambda: comma(lines('Rec\tCycle P\tCycle C\tStep\tTestTime\tStepTime\tCap. [Ah]\tCurrent [A]\tVoltage [V]\tMd\tDPT Time',
        lambda k, r: f'{k}\t{r.cycle-1}\t{r.cycle}\t{r.step}\t{r.t/60:.6f}\t{r.step_t/60:.6f}\t{r.ah:.6f}\t{abs(r.i)}\t{r.v:.4f}\t{r.state}\t{when(r.t)}', 'Name:\tx\nTester\tMaccor #4\nSCap\t0.017\n\n')).replace('TestTime', 'TestTime [min]').replace('StepTime', 'StepTime [min]'),
    biologic=lambda: comma(lines('mode\tox/red\terror\ttime/s\tcontrol/mA\tEwe/V\t<I>/mA\tdQ/mA.h\t(Q-Qo)/mA.h\thalf cycle\tcycle number\tQ discharge/mA.h\tQ charge/mA.h\tI Range\tP/W',
        lambda k, r: f'1\t{int(r.i>0)}\t0\t{r.t:.9E}\t{r.i*1000}\t{r.v:.7E}\t{r.i*1000:.7E}\t0.0\t{net[k]*1000:.6E}\t{2*r.cycle}\t{(r.cycle-1):.7E}\t{dis[k]*1000:.6E}\t{chg[k]*1000:.6E}\t15\t{r.i*r.v:.4E}',
        'EC-Lab ASCII FILE\nNb header lines : 6                          \n\nGalvanostatic Cycling with Potential Limitation\nElectrode surface area : 0.001 cm²\n')),
    basytec=lambda: lines('~Time[h]\tDataSet\tt-Step[h]\tLine\tCommand\tU[V]\tI[A]\tAh[Ah]\tT1[°C]\tCyc-Count\tState',
        lambda k, r: f"{r.t/3600:.8f}\t{k}\t{r.step_t/3600:.8f}\t{r.step}\t{dict(C='Charge', D='Discharge', R='Pause')[r.state]}\t{r.v:.5f}\t{r.i:.5f}\t{net[k]:.6f}\t25.1\t{r.cycle}\t1",
        '~Resultfile from Basytec Battery Test System\n~Date and Time of Data Converting: 01.03.2026 10:00:00\n~Name of Test: x\n~\n'),
    novonix=lambda: lines('Date and Time,Cycle Number,Step Type,Run Time (h),Step Time (h),Current (A),Potential (V),Capacity (Ah),Temperature (°C),Circuit Temperature (°C),Energy (Wh),dVdt (V/h),dIdt (V/h),Step Number,Step position',
        lambda k, r: f"{when(r.t)},{r.cycle},{dict(C=7, D=9, R=0)[r.state]},{r.t/3600:.8f},{r.step_t/3600:.8f},{r.i},{r.v:.5f},{net[k]:.6f},20.0,30.0,0,0,0,{r.step},1",
        '[Summary]\nNovonix UHPC data file\nCapacity: 1 Ah\n[End Summary]\n\n[Data]\n'),
    landt=lambda: lines('Record,TestTime/Sec,StepTime/Sec,Cycle-Index,Step-Index,Current/mA,Capacity/mAh,Voltage/V,SysTime',
        lambda k, r: f'{k},{r.t},{r.step_t},{r.cycle},{r.step},{r.i*1000},{r.ah*1000:.4f},{r.v:.5f},{when(r.t)}'),
    digatron=lambda: lines('Step,Status,Prog Time,Step Time,Cycle,Voltage,Current,AhAccu\n,,[hhhh:mm:ss.ms],[hhhh:mm:ss.ms],,[V],[A],[Ah]',
        lambda k, r: f"{r.step},{dict(C='CHA', D='DCH', R='PAU')[r.state]},{hms(r.t)},{hms(r.step_t)},{r.cycle},{r.v:.5f},{r.i},{net[k]:.5f}"),
    neware=lambda: lines('DataPoint,Cycle Index,Step Index,Step Type,Time,Total Time,Current(mA),Voltage(V),Capacity(mAh),Energy(Wh),Date,Power(W),T1(?)',
        lambda k, r: f"{k},{r.cycle},{r.step},{dict(C='CC Chg', D='CC DChg', R='Rest')[r.state]},{hms(r.step_t)},{hms(r.t)},{abs(r.i)*1000},{r.v:.4f},{r.ah*1000:.4f},0,{when(r.t)},0,26.6"),
    bdf=lambda: lines('Test Time / s,Voltage / V,Current / A,Cycle Count / 1,Ambient Temperature / degC', lambda k, r: f'{r.t},{r.v:.5f},{r.i},{r.cycle},25'),
    batteryarchive=lambda: lines('Date_Time,Test_Time (s),Cycle_Index,Current (A),Voltage (V),Charge_Capacity (Ah),Discharge_Capacity (Ah),Environment_Temperature (C),Cell_Temperature (C)',
        lambda k, r: f'{when(r.t)},{r.t},{r.cycle},{r.i},{r.v:.5f},{chg_cycle[k]:.6f},{dis_cycle[k]:.6f},23,{24+r.cycle}'),
    timeseries=lambda: lines('Zeit [min];Spannung (mV);Strom (A);Zyklus', lambda k, r: comma(f'{r.t/60:.6f};{r.v*1000:.3f};{r.i:.5f};{r.cycle}')).replace('Zeit', 'Test time').replace('Zyklus', 'Cycle no.'),
)
step_ah = np.concatenate([[0.], np.diff(CELL.ah)]).clip(0)
chg, dis = np.cumsum(step_ah*(CELL.i > 0)), np.cumsum(step_ah*(CELL.i < 0)); net = chg - dis
per_cycle = lambda x: x - pd.Series(x).groupby(CELL.cycle).transform('first').to_numpy()
chg_cycle, dis_cycle = per_cycle(chg), per_cycle(dis)

@pytest.mark.parametrize('vendor', list(TEXTS))
@pytest.mark.parametrize('encoding', ['utf-8', 'latin-1', 'utf-16', 'utf-8-sig'])
def test_every_text_format(tmp_path, vendor, encoding):
    path = tmp_path/'export_of_last_week.xyz'; path.write_bytes(TEXTS[vendor]().encode(encoding))
    assert is_raw(path) == vendor
    table, notes = cycles_from_file(path)
    np.testing.assert_allclose(table.cap_ah, CAPS, atol=2e-3)
    assert set(table.kind) == {'full'} and table.cell_id.unique().tolist() == ['export_of_last_week']
    np.testing.assert_allclose(table.charge_cap_ah, CAPS, atol=.012)

@pytest.mark.parametrize('vendor', ['arbin', 'biologic', 'landt', 'novonix', 'neware'])
def test_counter_and_clock_agree_whatever_the_batch(tmp_path, vendor):
    path = tmp_path/'x'; path.write_text(TEXTS[vendor](), encoding='latin-1')
    a, b, c = (cycles_from_file(path, rows=n)[0] for n in (13, 200, 100_000))
    pd.testing.assert_frame_equal(a, b); pd.testing.assert_frame_equal(a, c)
    pd.testing.assert_frame_equal(a, to_cycles(read_raw(path))[0], check_like=True)

def test_gzip_and_windows_newlines(tmp_path):
    path = tmp_path/'x'; path.write_bytes(gzip.compress(TEXTS['arbin']().replace('\n', '\r\n').encode()))
    np.testing.assert_allclose(cycles_from_file(path)[0].cap_ah, CAPS, atol=1e-4)

def frame(vendor='neware'): return pd.read_csv(io.StringIO(TEXTS[vendor]()))

def test_xlsx_neware_sheets_and_arbin_split(tmp_path):
    records = frame(); path = tmp_path/'results.bin'
    with pd.ExcelWriter(tmp_path/'r.xlsx') as w:
        pd.DataFrame({'Cycle Index': [1], 'DChg. Cap.(Ah)': [1.]}).to_excel(w, sheet_name='cycle', index=False)
        records.to_excel(w, sheet_name='record', index=False)
    (tmp_path/'r.xlsx').rename(path)
    assert is_raw(path) == 'neware'
    np.testing.assert_allclose(cycles_from_file(path)[0].cap_ah, CAPS, atol=1e-3)
    arbin = frame('arbin'); half = len(arbin)//2
    with pd.ExcelWriter(tmp_path/'a.xlsx') as w:
        pd.DataFrame([['TEST REPORT']]).to_excel(w, sheet_name='Info', index=False)
        for n, part in enumerate((arbin[:half], arbin[half:])): part.to_excel(w, sheet_name=f'Channel_1-008_{n+1}', index=False)
    table, notes = cycles_from_file(tmp_path/'a.xlsx')
    np.testing.assert_allclose(table.cap_ah, CAPS, atol=1e-4); assert notes[0]['code'] == 'sheets'

def test_parquet_with_bdf_and_legacy_labels(tmp_path):
    old = pd.DataFrame(dict(test_time_millisecond=CELL.t*1000, current_ampere=CELL.i, voltage_volt=CELL.v, cycle_dimensionless=CELL.cycle))
    old.to_parquet(tmp_path/'a.csv'); assert is_raw(tmp_path/'a.csv') == 'bdf'
    np.testing.assert_allclose(cycles_from_file(tmp_path/'a.csv', rows=100)[0].cap_ah, CAPS, atol=2e-3)

def record(): return dict(cell_id='B7', nominal_capacity_in_Ah=1.1, cycle_data=[dict(cycle_number=int(k), voltage_in_V=p.v.tolist(), current_in_A=p.i.tolist(),
    time_in_s=(p.t - p.t.iloc[0]).tolist(), charge_capacity_in_Ah=None, discharge_capacity_in_Ah=None, internal_resistance_in_ohm=.02) for k, p in CELL.groupby('cycle')])

def test_records_as_json_and_as_harmless_pickle(tmp_path):
    arrays = record(); arrays['cycle_data'] = [{k: np.array(v) if isinstance(v, list) else v for k, v in c.items()} for c in arrays['cycle_data']]
    for name, data in (('a', json.dumps(record()).encode()), ('b', pickle.dumps(record())), ('c', pickle.dumps(arrays)), ('d', pickle.dumps(arrays, protocol=2))):
        (tmp_path/name).write_bytes(data); assert is_raw(tmp_path/name) == 'batteryml'
        table, _ = cycles_from_file(tmp_path/name)
        np.testing.assert_allclose(table.cap_ah, CAPS, atol=2e-3); assert table.cell_id.iloc[0] == 'B7'; np.testing.assert_allclose(table.resistance_ohm, .02)

class Evil:
    def __reduce__(self): return (os.system, ('touch /tmp/battnb_pwned',))

def test_pickle_runs_nothing(tmp_path):
    for n, thing in enumerate((Evil(), dict(cycle_data=[Evil()]), [eval], dict(cycle_data=[type('X', (), {})]) if False else dict(cycle_data=[os.path.join]))):
        (tmp_path/f'{n}').write_bytes(pickle.dumps(thing))
        with pytest.raises(InputError, match='can run programs'): cycles_from_file(tmp_path/f'{n}')
    assert not Path('/tmp/battnb_pwned').exists()

def test_battery_archive_cycle_table(tmp_path):
    (tmp_path/'SNL_18650_LFP_cycle_data.csv').write_text('Cycle_Index,Start_Time,End_Time,Test_Time (s),Min_Current (A),Max_Current (A),Min_Voltage (V),Max_Voltage (V),Charge_Capacity (Ah),Discharge_Capacity (Ah),Charge_Energy (Wh),Discharge_Energy (Wh)\n'
        '1,,,0,-1,1,2,3.6,1.1,1.09,3,3\n2,,,9,-1,1,2,3.6,1.1,1.08,3,3\n4,,,9,0,1,3,3.6,.2,0,3,0\n')
    path = tmp_path/'SNL_18650_LFP_cycle_data.csv'; assert is_raw(path) == 'batteryarchive-cycles'
    table, _ = cycles_from_file(path)
    assert table.cell_id.iloc[0] == 'SNL_18650_LFP' and table.cycle.tolist() == [1, 2, 4] and table.kind.tolist() == ['full', 'full', 'partial']

def test_cycle_tables_are_not_raw(tmp_path):
    pd.DataFrame(dict(cell_id='a', cycle=range(1, 50), cap_ah=1.)).to_csv(tmp_path/'a.csv', index=False)
    pd.DataFrame(dict(cycle=range(1, 50), capacity=1., voltage=3.5, current=1., time=range(49))).to_csv(tmp_path/'b.csv', index=False)
    pd.DataFrame({'cycle': range(5), 'cell A': 1., 'cell B': 1.}).to_parquet(tmp_path/'c.parquet')
    assert [is_raw(tmp_path/n) for n in ('a.csv', 'b.csv', 'c.parquet', 'missing')] == [None]*4

def test_several_cells_in_one_file(tmp_path):
    two = pd.concat([frame('arbin').assign(cell_id=c) for c in ('north', 'south')]).sort_values(['Test_Time(s)', 'cell_id'], kind='stable'); two.to_csv(tmp_path/'x.csv', index=False)
    for rows in (17, 100_000):
        table, _ = cycles_from_file(tmp_path/'x.csv', rows=rows)
        assert table.groupby('cell_id').size().to_dict() == dict(north=4, south=4); np.testing.assert_allclose(table.cap_ah, CAPS*2, atol=1e-4)

# ---------------------------------------------------------------- traps

def test_last_line_cut_off(tmp_path):
    text = TEXTS['arbin'](); (tmp_path/'x').write_text(text[:-12])
    table, notes = cycles_from_file(tmp_path/'x'); assert [n['code'] for n in notes] == ['cut_off']; assert len(table) == 4

def test_repeated_header_and_overlong_lines(tmp_path):
    rows = TEXTS['arbin']().splitlines(); rows.insert(200, rows[0]); rows.insert(300, rows[5] + ',1,2,3,4,5')
    (tmp_path/'x').write_text('\n'.join(rows)); table, notes = cycles_from_file(tmp_path/'x')
    np.testing.assert_allclose(table.cap_ah, CAPS, atol=1e-3); assert {n['code'] for n in notes} == {'rows', 'time_backwards'}     # the stale line is a stray

def samples(**kw): return pd.DataFrame(dict(dict(test_time_s=CELL.t, current_a=CELL.i, voltage_v=CELL.v, cycle=CELL.cycle), **kw))

@pytest.mark.parametrize('change, code', [(dict(current_a=-CELL.i), 'sign'), (dict(current_a=CELL.i.abs()), 'sign'),
    (dict(current_a=CELL.i*1000, discharge_ah=dis, charge_ah=chg), 'unit'), (dict(test_time_s=CELL.t/3600, discharge_ah=dis, charge_ah=chg), 'unit')])
def test_signs_and_units_found_out(change, code):
    table, notes = to_cycles(Raw(samples(**change))); np.testing.assert_allclose(table.cap_ah, CAPS, atol=.02); assert code in [n['code'] for n in notes]

def test_nominal_capacity_settles_milliampere_hours():
    table, notes = to_cycles(Raw(samples(current_a=CELL.i*1000)), nominal_ah=1.); np.testing.assert_allclose(table.cap_ah, CAPS, atol=.02); assert notes[-1]['code'] == 'unit'

@pytest.mark.parametrize('counter', [dict(discharge_ah=dis, charge_ah=chg), dict(discharge_ah=dis + 55), dict(discharge_ah=dis_cycle), dict(capacity_ah=CELL.ah),
    dict(capacity_ah=net), dict(capacity_ah=np.where(CELL.i < 0, -CELL.ah, CELL.ah)), {}])
def test_counters_of_every_habit(counter):
    table, _ = to_cycles(Raw(samples(**counter))); np.testing.assert_allclose(table.cap_ah, CAPS, atol=1e-6 if counter else 2e-3)

def test_clock_faults_are_counted_and_do_no_harm():
    t = CELL.t.to_numpy().copy(); where = [50, 400, 900]; t[where] = 0.
    table, notes = to_cycles(Raw(samples(test_time_s=t))); assert [(n['code'], n['n']) for n in notes] == [('time_backwards', 3)]; np.testing.assert_allclose(table.cap_ah, CAPS, atol=.02)
    table, notes = to_cycles(Raw(samples(test_time_s=CELL.step_t))); assert notes[0]['code'] == 'clock_restart'; np.testing.assert_allclose(table.cap_ah, CAPS, atol=.02)

def test_gap_is_not_integrated_and_resumed_numbering_goes_on():
    s = samples(); again = pd.concat([s[s.cycle <= 2], s[s.cycle <= 2].assign(test_time_s=lambda d: d.test_time_s + 1e6)], ignore_index=True)
    table, notes = to_cycles(Raw(again)); assert table.cycle.tolist() == [1, 2, 3, 4]; assert 'cycle_restart' in [n['code'] for n in notes]
    at = int(np.flatnonzero(CELL.i < 0)[50]); t = s.test_time_s.copy(); t[at:] += 8*3600
    table, notes = to_cycles(Raw(s.assign(test_time_s=t))); assert notes[0]['code'] == 'gap'; np.testing.assert_allclose(table.cap_ah, CAPS, atol=.02)

def test_no_cycle_numbers_drive_cycle_pulses():
    rng = np.random.default_rng(0); s = samples().drop(columns='cycle'); pulse = np.where((CELL.i < 0) & (rng.random(len(s)) < .2), 1.3, 0.); s['current_a'] += pulse
    table, notes = to_cycles(Raw(s)); assert len(table) == 4 and notes[0]['code'] == 'cycles_derived' and set(table.discharges) == {1}

def test_partial_and_charge_only_cycles():
    s = samples(); s = s[~((s.cycle == 3) & (s.current_a < 0) & (s.voltage_v < 3.5))]; s = s[~((s.cycle == 4) & (s.current_a < 0))]
    table, _ = to_cycles(Raw(s)); assert table.kind.tolist() == ['full', 'full', 'partial', 'partial']; assert np.isnan(table.cap_ah.iloc[3]) and table.discharges.iloc[3] == 0

def test_temperature_and_resistance_are_carried(tmp_path):
    (tmp_path/'x').write_text(TEXTS['batteryarchive']()); assert cycles_from_file(tmp_path/'x')[0].temperature_c.tolist() == [25, 26, 27, 28]
    table, _ = to_cycles(Raw(samples(resistance_ohm=np.where(CELL.state == 'R', .02, 0.)))); np.testing.assert_allclose(table.resistance_ohm, .02)

@pytest.mark.parametrize('damage', ['zeros at the end', 'zeros inside', 'a stray quote', 'a digit'])
def test_damage_costs_a_row_not_the_file(tmp_path, damage):
    data = TEXTS['arbin']().encode(); at = data.index(b',-1.0,', 9000)
    data = {'zeros at the end': data + bytes(5000), 'zeros inside': data[:20000] + bytes(700) + data[20700:], 'a stray quote': data[:9000] + b'"' + data[9000:],
            'a digit': data[:at] + b',-91000,' + data[at+6:]}[damage]
    (tmp_path/'x').write_bytes(data); np.testing.assert_allclose(cycles_from_file(tmp_path/'x')[0].cap_ah, CAPS, atol=1e-3)

def test_mutated_bytes_never_escape_as_other_errors(tmp_path):
    rng = np.random.default_rng(0)
    for k, (vendor, text) in enumerate((v, t()) for v, t in TEXTS.items() for _ in range(4)):
        data = np.frombuffer(text.encode(), np.uint8).copy(); data[rng.integers(0, len(data), 40)] = rng.integers(0, 256, 40)
        (tmp_path/'x').write_bytes(data[:rng.integers(len(data)//2, len(data))].tobytes())
        try: is_raw(tmp_path/'x'); cycles_from_file(tmp_path/'x')
        except InputError: pass

def test_flicker_does_not_fill_the_memory():
    n = 60_000; rng = np.random.default_rng(1); meter = Meter(most=5000)
    t = np.arange(n)*1.; base = np.where(t % 7200 < 3600, 1., -1.)
    s = pd.DataFrame(dict(test_time_s=t, current_a=base + 3*rng.choice([-1, 1], n), voltage_v=3.6 + .5*np.sin(2*np.pi*t/7200 - np.pi/2), cycle=1 + t//7200))
    for k in range(0, n, 2500): meter.add(s.iloc[k:k+2500])
    assert meter.kept < 15_000; seg = meter.finish()
    np.testing.assert_allclose((seg.q_pos - seg.q_neg).sum(), np.trapezoid(s.current_a, t)/3600, rtol=1e-9)

def test_headers_in_the_wild():
    for header, want in {'Voltage(mV)': ('voltage_v', 1e-3), 'Current (uA)': ('current_a', 1e-6), 'Current(µA)': ('current_a', 1e-6), 'Total Time(h)': ('test_time_s', 3600.), 'Chg. Cap.(mAh)': ('charge_ah', 1e-3),
                         'DCIR(mΩ)': ('resistance_ohm', 1e-3), 'Aux_Temperature_1(C)': ('temperature_c', 1.), 'voltage_in_V': ('voltage_v', 1.), 'T (K)': ('temperature_c', 1.), '放电容量(Ah)': ('discharge_ah', 1.)}.items():
        found = match_columns([header]); assert {q: c.factor for q, c in found.items()} == {want[0]: want[1]}, header
    assert not match_columns(['Capacity Density(mAh/g)', 'dQ/dV(mAh/V)', 'Power(W)', 'Eff(%)', 'V Range', 'I Range'])

# ---------------------------------------------------------------- hostile input: one plain sentence each, naming the file

HOSTILE = {
    'empty.csv': (b'', 'is empty'), 'blank.csv': (b' \n\n  \n', 'is empty'), 'noise.bin': (np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes(), 'no line with column titles'),
    'prose.txt': (b'voltage, current and time were fine.\n'*50, 'no line with column titles'), 'header.csv': (b'Test_Time(s),Current(A),Voltage(V)\n', 'no line with column titles'),
    'idle.csv': (b'time_s,current_A,voltage_V\n' + b''.join(b'%d,0,3.3\n' % k for k in range(30)), 'no discharge in 30 samples'),
    'charge.csv': (b'time_s,current_A,voltage_V\n' + b''.join(b'%d,1,%.2f\n' % (k*60, 3 + k/30) for k in range(30)), 'no discharge in 30 samples'),
    'words.csv': (b'time_s,current_A,voltage_V\n1,1,3\n' + b'a,b,c\n'*20, 'no discharge'), 'nan.csv': (b'time_s,current_A,voltage_V\n1,1,3\n' + b'nan,nan,nan\n'*20, 'no discharge'),
    'old.xls': (b'\xd0\xcf\x11\xe0' + bytes(600), 'save it as .xlsx'), 'test.res': (b'\x00\x01\x00\x00Standard Jet DB' + bytes(600), 'Arbin .res'), 'a.mpr': (b'BIO-LOGIC MODULAR FILE\x1a' + bytes(99), '.mpt'),
    'v73.mat': (b'MATLAB 7.3 MAT-file' + bytes(600), 'HDF5'), 'hdf.h5': (b'\x89HDF\r\n\x1a\n' + bytes(99), 'HDF5'), 'cut.parquet': (b'PAR1' + bytes(300), 'Parquet'), 'cut.xlsx': (b'PK\x03\x04' + bytes(300), 'zip'),
    'cut.mat': (b'MATLAB 5.0 MAT-file' + bytes(400), 'MATLAB'), 'x.nda': (b'NEWARE' + bytes(4000), 'Neware'), 'list.json': (b'[1, 2]', "'cycle_data'"), 'cut.json': (b'{"cycle_data": [', 'record'),
    'cut.pkl': (pickle.dumps(dict(cycle_data=[1, 2, 3]))[:-5], 'record'), 'short.json': (json.dumps(dict(cycle_data=[dict(time_in_s=[1, 2], voltage_in_V=[3, 3], current_in_A=[1, 1, 1])])).encode(), 'different lengths'),
    'lacks.json': (json.dumps(dict(cycle_data=[dict(time_in_s=[1, 2])])).encode(), 'lacks'), 'none.json': (b'{"cycle_data": []}', 'no cycles'), 'long.csv': (b'x'*300_000, 'no line'),
    'inf.csv': (b'time_s,current_A,voltage_V\n1,1,3\n' + b'inf,-inf,1e999\n'*20, 'no discharge'), 'huge.csv': (b'time_s,current_A,voltage_V\n1,1,3\n2,1e400,3\n3,-1,3\n', '')}

@pytest.mark.parametrize('name', list(HOSTILE))
def test_hostile_files_get_a_sentence(tmp_path, name):
    data, words = HOSTILE[name]; (tmp_path/name).write_bytes(data)
    assert is_raw(tmp_path/name) in (None, 'timeseries', 'neware-nda', 'batteryml')
    try: cycles_from_file(tmp_path/name)
    except InputError as e:
        assert str(e).count(name) == 1 and words in str(e) and len(str(e)) < 500, str(e)
        assert 'Traceback' not in str(e)
    else: assert name == 'huge.csv'

def nasa_file(path, packed):
    from scipy.io import savemat
    steps = [dict(type=kind, time=np.array([2009., 4, 7, 15 + k, 0, 0]), ambient_temperature=24., data=dict(Voltage_measured=np.linspace(3, 4, 99)[::way], Current_measured=np.full(99, 1.*way),
             Temperature_measured=np.full(99, 24.), Time=np.linspace(0, 3600, 99))) for k, (kind, way) in enumerate([('charge', 1), ('discharge', -1)]*2)]
    savemat(path, dict(B1=dict(cycle=steps)), do_compression=packed)

@pytest.mark.parametrize('packed', [True, False])
def test_damaged_matlab_files_do_not_crash_the_process(tmp_path, packed):
    "Run in a child, because the failure to be excluded is a crash."
    nasa_file(tmp_path/'a.mat', packed); assert len(cycles_from_file(tmp_path/'a.mat')[0]) == 2 and is_raw(tmp_path/'a.mat') == 'nasa'
    data = np.frombuffer((tmp_path/'a.mat').read_bytes(), np.uint8); rng = np.random.default_rng(3)
    for k in range(6):
        bad = data.copy(); bad[rng.integers(128, len(bad), 60)] = rng.integers(0, 256, 60); (tmp_path/f'{k}.mat').write_bytes(bad.tobytes())
    code = f'''
        from pathlib import Path; from battnb.cyclers import cycles_from_file; from battnb.core import InputError
        for p in sorted(Path({str(tmp_path)!r}).glob('?.mat')):
            try: cycles_from_file(p)
            except InputError as e: pass
        print('alive')'''
    out = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == 'alive', out.stderr[-500:]

def test_zip_that_is_too_good_to_be_true(tmp_path):
    with zipfile.ZipFile(tmp_path/'bomb.xlsx', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('xl/workbook.xml', 'x')
        with z.open('xl/sharedStrings.xml', 'w', force_zip64=True) as f:
            for _ in range(310): f.write(bytes(1 << 20))
    with pytest.raises(InputError, match='refused'): cycles_from_file(tmp_path/'bomb.xlsx')

def test_missing_file_and_missing_voltage(tmp_path):
    with pytest.raises(InputError, match='no such file: nothere.csv'): cycles_from_file(tmp_path/'nothere.csv')
    (tmp_path/'p.parquet').write_bytes(b''); pd.DataFrame(dict(time_s=[1, 2], current_A=[1, 2])).to_parquet(tmp_path/'p.parquet')
    with pytest.raises(InputError, match='no column found for voltage_v among: time_s, current_A'): cycles_from_file(tmp_path/'p.parquet')

# ---------------------------------------------------------------- folders, chains, dask, scale

def write_folder(folder, n=4):
    for k in range(n): (folder/f'cell{k}.csv').write_text(TEXTS[list(TEXTS)[k]](), encoding='latin-1')
    (folder/'readme.txt').write_text('nothing here'); (folder/'bad.csv').write_bytes(HOSTILE['idle.csv'][0])

def test_folder_survives_bad_files_in_parallel_too(tmp_path):
    write_folder(tmp_path, 3); nasa_file(tmp_path/'cell9.mat', False); a, notes = cycles_from_folder(tmp_path); b, _ = cycles_from_folder(tmp_path, n_jobs=2)
    pd.testing.assert_frame_equal(a, b); assert a.cell_id.nunique() == 4 and {n['code'] for n in notes if n['file'] in ('bad.csv', 'readme.txt')} == {'unusable', 'skipped'}
    with pytest.raises(InputError, match='none of 1 files'): cycles_from_folder(tmp_path, pattern='bad.csv')
    with pytest.raises(InputError, match='no files match'): cycles_from_folder(tmp_path, pattern='*.nope')

def test_files_of_one_cell_are_chained_by_date(tmp_path):
    late = TEXTS['arbin']().replace('2026-03-0', '2026-04-0'); (tmp_path/'a_second.csv').write_text(late); (tmp_path/'b_first.csv').write_text(TEXTS['arbin']())
    table, _ = cycles_from_folder(tmp_path, cell_of=lambda p: 'one')
    assert table.cycle.tolist() == list(range(1, 9)) and table.file.tolist() == ['b_first.csv']*4 + ['a_second.csv']*4 and table.throughput_ah.is_monotonic_increasing

def test_dask_local_cluster(tmp_path):
    distributed = pytest.importorskip('distributed', reason='needs dask and distributed'); import joblib
    write_folder(tmp_path); plain, _ = cycles_from_folder(tmp_path)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster):
        with joblib.parallel_config(backend='dask'): spread, _ = cycles_from_folder(tmp_path, n_jobs=-1)
    pd.testing.assert_frame_equal(plain, spread)

@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_million_rows_in_bounded_memory(tmp_path):
    "Peak memory of a process of its own grows by less than 200 MB while it reads a million rows."
    path = tmp_path/'big.csv'; k = np.arange(7200); half = 3600
    with open(path, 'w') as f:
        f.write('Test_Time(s),Step_Index,Cycle_Index,Current(A),Voltage(V),Temperature (C)\n')
        volts = [f'{3 + 1.2*j/half:.5f},25.00' if j < half else f'{4.2 - 1.2*(j-half)/half:.5f},25.00' for j in k.tolist()]
        for c in range(139):
            up, down = f',1,{c+1},{1 - .001*c:.5f},', f',2,{c+1},{.001*c - 1:.5f},'
            f.write('\n'.join(f'{c*7200 + j}{up if j < half else down}{volts[j]}' for j in range(7200)) + '\n')
    code = textwrap.dedent(f'''
        from battnb.cyclers import cycles_from_file
        def memory(what): return int(next(x for x in open('/proc/self/status') if x.startswith(what)).split()[1])/1024
        open('/proc/self/clear_refs', 'w').write('5')            # ru_maxrss would be the parent's
        before = memory('VmRSS'); table, _ = cycles_from_file({str(path)!r}); print(len(table), round(table.cap_ah.iloc[-1], 3), memory('VmHWM') - before)''')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=dict(os.environ, OMP_NUM_THREADS='1')).stdout.split()
    assert out[0] == '139' and abs(float(out[1]) - .862) < 2e-3
    assert float(out[2]) < 200, f'{out[2]} MB'

# ---------------------------------------------------------------- real files against the manifest

@real
@pytest.mark.parametrize('name, fmt, n_cycles, caps, eps', [
    ('arbin_example.csv', 'arbin', 2, {1: 1.072360, 2: 1.072909}, 2e-6), ('maccor_three.txt', 'maccor', 15, {0: .850928, 1: .846961, 14: .822334}, 2e-6),
    ('nw_regular_export_ife_example.csv', 'neware', 20, {1: .33067, 2: .33172, 3: .32663}, 1e-5), (NDAX + '.ndax', 'neware-nda', 7, {1: 6.014820, 2: 4.720466, 7: 4.719031}, 5e-6),
    (NDAX + '.parquet', 'neware', 7, {1: 6.014820, 2: 4.720466, 7: 4.719031}, 5e-6), (SINTEF, 'bdf', 1, {}, 0), ('legacy.bdf.parquet', 'bdf', 3, {}, 0),
    ('CS2_35_9_8_10.xlsx', 'arbin', 7, {1: 1.029194, 2: 1.027984, 3: 1.025518, 7: .916755}, 2e-6), ('nasa_B0029_excerpt.mat', 'nasa', 10, {1: 1.6975, 2: 1.8447, 3: 1.8254, 4: 1.8158}, 1e-4)])
def test_real_files_match_the_manifest(name, fmt, n_cycles, caps, eps):
    assert is_raw(RAW/name) == fmt
    table, notes = cycles_from_file(RAW/name); got = table.set_index('cycle').cap_ah
    assert len(table) == n_cycles
    for cycle, ah in caps.items(): assert abs(got[cycle] - ah) <= eps, (cycle, got[cycle], ah)

@real
def test_real_files_say_what_the_manifest_warns_of():
    kinds = lambda name: cycles_from_file(RAW/name)[0].set_index('cycle'); codes = lambda name: {n['code']: n for n in cycles_from_file(RAW/name)[1]}
    arbin = kinds('arbin_example.csv'); assert abs(arbin.charge_cap_ah[1] - (1.0719036 - .8800053)) < 1e-4 and not arbin.charge_full[1] and arbin.charge_full[2]
    assert codes(SINTEF)['time_backwards']['n'] == 19
    maccor = kinds('maccor_three.txt'); np.testing.assert_allclose(maccor.charge_cap_ah.loc[[0, 1]], [.9061, .8544], atol=5e-5); assert 'unit' in codes('maccor_three.txt')
    neware = kinds('nw_regular_export_ife_example.csv'); assert abs(neware.charge_cap_ah[1] - .02256) < 1e-5 and not neware.charge_full[1]; assert 20 < neware.temperature_c[1] < 30
    ndax = kinds(NDAX + '.ndax'); np.testing.assert_allclose(ndax.charge_cap_ah.loc[[1, 2]], [4.7607, 4.7228], atol=5e-5); assert ndax.kind[1] == 'diagnostic' and ndax.discharges[1] == 2 and set(ndax.kind[2:]) == {'full'}
    calce = kinds('CS2_35_9_8_10.xlsx'); assert calce.kind.tolist() == ['full']*6 + ['partial'] and not calce.charge_full[1]
    legacy = kinds('legacy.bdf.parquet'); assert legacy.index.tolist() == [0, 1, 2] and .0015 < legacy.cap_ah[1] < .002
    with pytest.raises(InputError, match='maccor_two.txt: no discharge in 213 samples.*current is zero throughout.*0.1377 to 0.15'): cycles_from_file(RAW/'maccor_two.txt')
    assert {n['code'] for n in read_raw(RAW/'maccor_two.txt').notes} == {'cut_off'}

@real
def test_ndax_and_the_vendors_own_export_agree():
    a, b = (cycles_from_file(RAW/(NDAX + end))[0] for end in ('.ndax', '.parquet'))
    for column in ('cap_ah', 'charge_cap_ah', 'energy_wh', 'v_low', 'v_high'): np.testing.assert_allclose(a[column], b[column], rtol=1e-3)
    assert cycles_from_file(RAW/SINTEF, cycles='derive')[0].shape[0] == 5

@real
def test_early_curves_from_raw_and_from_arrays():
    early = load_early('calce'); raw = qv_matrix(RAW/'CS2_35_9_8_10.xlsx', early.v)
    assert raw.q.shape == (1, 7, 100); want = early.take(['CALCE_CS2_35']).q[0]
    best = [np.nanmin(np.nanmean(np.abs(want - curve), axis=1)) for curve in raw.q[0, :6]]
    assert max(best) < .02, best                        # the published matrix has these discharges
    for name in ('matr', 'clo', 'nasa', 'tju', 'sdu', 'hust', 'snl', 'cruh'):
        c = load_early(name); assert c.q.shape == (len(c), len(c.cycle), len(c.v)) and len(c)
