"""Forecast, life, models and the pipeline from Python: shapes, cadence, refusals, resumption, a fleet of a thousand cells."""
import json, os, threading, time, warnings
import numpy as np, pandas as pd, pytest
import browser
from battnb.core import InputError
from battnb.data import Cells, load


@pytest.fixture(scope='session')
def fleet(): return load('fleet')

@pytest.fixture(scope='session')
def base(tmp_path_factory):
    "An untrained network of the smallest size: the plumbing does not care."
    from battnb.timer import BatteryTimer, BatteryTimerCfg
    return BatteryTimer(BatteryTimerCfg(d=16, layers=1, heads=2, ff=32)).save_pretrained(tmp_path_factory.mktemp('models')/'tiny-timer', trained_on=['nothing'])

@pytest.fixture(scope='session')
def calibrated(base, fleet, tmp_path_factory):
    "The same with a calibration beside it."
    import shutil, torch
    from battnb.timer import BatteryTimer
    from battnb.uncertainty import calibrate
    from battnb.windows import make_windows
    folder = tmp_path_factory.mktemp('models')/'calibrated'
    shutil.copytree(base, folder)
    net, w = BatteryTimer.from_pretrained(folder), make_windows(fleet.take(fleet.ids[::4]), stride=96)
    with torch.inference_mode(): q = net.quantiles(w.ctx).numpy()
    calibrate(q, w.targ.numpy(), w.cell_id, qlevels=net.cfg.levels).to_json(folder/'conformal.json')
    return folder

def ramp(cell='A', n=200, start=1., slope=-5e-4, step=1, **cols): return pd.DataFrame(dict(cell_id=cell, cycle=1 + step*np.arange(n), cap_ah=2*(start + slope*np.arange(n)), soh=start + slope*np.arange(n), **cols))


# ---------------------------------------------------------------- forecast
def test_forecast_table_of_many_lengths(calibrated, fleet):
    from battnb import forecast
    cells = pd.concat([fleet.rows(i).head(n) for i, n in zip(fleet.ids, (12, 24, 95, 96, 97, 150, 240, 5000))])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = forecast(cells, h=130, model=calibrated, level=(80, 95))
    assert list(t.columns) == ['cell_id', 'cutoff', 'cycle', 'calibrated', 'calibrated-lo-80', 'calibrated-hi-80', 'calibrated-lo-95', 'calibrated-hi-95']
    assert len(t) == 8*130 and t.cell_id.nunique() == 8 and t.cycle.dtype.kind == 'i' and np.isfinite(t.drop(columns='cell_id').to_numpy(float)).all()
    assert (t.cycle > t.cutoff).all() and t.groupby('cell_id').cycle.is_monotonic_increasing.all()
    assert (t['calibrated-lo-95'] <= t['calibrated-lo-80']).all() and (t['calibrated-lo-80'] <= t.calibrated).all() and (t.calibrated <= t['calibrated-hi-80']).all()

def test_a_long_context_is_used(calibrated, fleet):
    from battnb import forecast
    i = max(fleet.ids, key=lambda i: len(fleet.soh(i)))
    rows = fleet.rows(i)
    whole, tail = (forecast(r, h=10, model=calibrated, level=()).calibrated.to_numpy() for r in (rows, rows.tail(96)))
    assert np.abs(whole - tail).max() > 1e-6

def test_batches_do_not_change_a_forecast(calibrated, fleet):
    from battnb import forecast
    few = fleet.take(fleet.ids[:12])
    together = forecast(few, h=20, model=calibrated, level=())
    for i in few.ids[::4]: np.testing.assert_allclose(forecast(few.take([i]), h=20, model=calibrated, level=()).calibrated, together[together.cell_id == i].calibrated, atol=1e-5)

@pytest.mark.parametrize('step', [1, 5, 100])
def test_steps_follow_the_cadence(step):
    from battnb import forecast
    t = forecast(ramp(n=60, step=step), h=4, model='linear-48 anchored', level=())
    assert t.cycle.tolist() == [1 + step*(59 + k) for k in range(1, 5)]
    np.testing.assert_allclose(t['linear-48 anchored'], 1 - 5e-4*np.arange(60, 64), atol=1e-5)

def test_gaps_are_lines_and_cycles_stay_real():
    from battnb import forecast
    t = ramp(n=100).drop(index=range(40, 70))
    out = forecast(t, h=2, model='linear-20', level=())
    assert out.cycle.tolist() == [101, 102] and abs(out['linear-20'][0] - .95) < 1e-4

def test_as_of_an_earlier_cycle_by_cell(fleet):
    from battnb import forecast
    two = fleet.take(fleet.ids[:2])
    t = forecast(two, h=8, model='persistence', level=(), at={two.ids[0]: 120, two.ids[1]: 200})
    assert t.groupby('cell_id', sort=False).cutoff.first().tolist() == [120, 200]
    np.testing.assert_allclose(t[t.cell_id == two.ids[1]].soh, two.soh(two.ids[1])[200:208])

def test_utilsforecast_takes_the_table(fleet):
    from battnb import forecast
    from utilsforecast.evaluation import evaluate
    from utilsforecast.losses import mae
    t = forecast(fleet.take(fleet.ids[:3]), h=24, model='linear-48', level=(), at=150)
    assert len(evaluate(t.drop(columns='cutoff'), [mae], id_col='cell_id', time_col='cycle', target_col='soh')) == 3

@pytest.mark.parametrize('change, said', [
    (dict(h=0), 'got 0'), (dict(h=1.5), 'got 1.5'), (dict(level=101), 'got 101'), (dict(level=(80, 33.3)), 'multiple of 0.5'), (dict(model='nope'), 'neither a folder nor one of'),
    (dict(model=''), 'neither a folder'), (dict(at=0), 'after the cut-off 0'), (dict(at=10), 'cell A: calibrated needs at least 12 steps of context, got 10')])
def test_refusals_of_forecast(calibrated, change, said):
    from battnb import forecast
    with pytest.raises(InputError, match=said.replace('.', r'\.')): forecast(ramp(), **(dict(model=calibrated) | change))

def test_intervals_are_never_a_silent_fallback(base, calibrated, tmp_path):
    import shutil
    from battnb import forecast
    from battnb.uncertainty import Conformal
    with pytest.warns(UserWarning, match='knows no spread'): t = forecast(ramp(), model='persistence')
    assert list(t.columns) == ['cell_id', 'cutoff', 'cycle', 'persistence']
    with pytest.warns(UserWarning, match='its own word'): t = forecast(ramp(), model=base)
    assert 'tiny-timer-lo-95' in t
    conf = json.loads((calibrated/'conformal.json').read_text())
    for u in conf['radius'].values(): u[''] = [r if k < 170 else None for k, r in enumerate(u[''])]
    shutil.copytree(calibrated, tmp_path/'few'); (tmp_path/'few'/'conformal.json').write_text(json.dumps(conf))
    with pytest.warns(UserWarning, match='too few for 95 %'): t = forecast(ramp(), model=tmp_path/'few')
    assert t['few-lo-95'].isna().all() and t['few-lo-80'].notna().all()
    (tmp_path/'few'/'conformal.json').write_text('{}')
    with pytest.raises(InputError, match='conformal.json'): forecast(ramp(), model=tmp_path/'few')
    assert Conformal.from_json(calibrated/'conformal.json').cells['']

def test_a_wrong_model_folder_is_named(tmp_path, base):
    import shutil
    from battnb.outlook import load_model
    (tmp_path/'empty').mkdir()
    with pytest.raises(InputError, match='no config.json'): load_model(tmp_path/'empty')
    shutil.copytree(base, tmp_path/'cut'); f = tmp_path/'cut'/'model.safetensors'; f.write_bytes(f.read_bytes()[:1000])
    with pytest.raises(InputError, match='damaged'): load_model(tmp_path/'cut')
    shutil.copytree(base, tmp_path/'odd'); (tmp_path/'odd'/'config.json').write_text('{"arch": "gpt"}')
    with pytest.raises(InputError, match="unknown architecture 'gpt'"): load_model(tmp_path/'odd')


# ---------------------------------------------------------------- life
def test_life_of_lines():
    from battnb import life
    t = pd.concat([ramp('fades', 200), ramp('over', 500, slope=-1e-3), ramp('still', 200, slope=0.), ramp('below', 100, start=.75)])
    with pytest.warns(UserWarning): out = life(t, model='linear-48').set_index('cell_id')
    assert list(out.columns) == ['cutoff', 'eol_cycle', 'rul', 'lo', 'hi', 'censored', 'reason']
    assert abs(out.eol_cycle['fades'] - 402) <= 1 and out.rul['fades'] == out.eol_cycle['fades'] - 200 and not out.censored['fades']
    assert abs(out.eol_cycle['over'] - 201) <= 1 and out.rul['over'] == 0 and out.reason['over'] == 'observed'
    assert out.censored['still'] and out.eol_cycle.isna()['still'] and 'no crossing of 0.8 within 1600 cycles' in out.reason['still']
    assert out.censored['below'] and 'before the record' in out.reason['below']

def test_life_intervals_hold_the_middle(calibrated, fleet):
    from battnb import life
    cells = fleet.take([i for i in fleet.ids if len(fleet.soh(i)) > 200][:40])
    out = life(cells, model=calibrated, at=180, level=80)
    told = out[~out.censored & (out.reason != 'observed')]
    assert len(told) > 8 and (told.lo <= told.eol_cycle).all() and (told.eol_cycle <= told.hi.fillna(10**9)).all() and (told.lo > 180).all()
    assert (out.eol_cycle.isna() == out.censored).all()

@pytest.mark.parametrize('change, said', [(dict(eol=80), 'got 80'), (dict(level=(50, 80)), 'one level'), (dict(reach=0), 'got 0')])
def test_refusals_of_life(change, said):
    from battnb import life
    with pytest.raises(InputError, match=said): life(ramp(), **(dict(model='linear-48') | change))


# ---------------------------------------------------------------- models
def test_models_lists_what_is_there(base):
    from battnb.outlook import models
    row = models(base.parent).set_index('name').loc['tiny-timer']
    assert row.horizon == 96 and row.trained_on == 'nothing' and not row.deploy and row.params > 1000
    assert {'name', 'params', 'context', 'horizon', 'trained_on', 'size_bytes', 'deploy', 'recommended'} <= set(models().columns)

@pytest.mark.filterwarnings('ignore:the intervals of')
@pytest.mark.parametrize('name', ['battery-timer', 'corner-64', 'gate-32', 'liquid-24', 'timer-mini', 'timer-small'])
def test_shipped_models_look_beyond_their_horizon(fleet, name):
    from battnb.outlook import forecast, load_model
    one = fleet.take([i for i in fleet.ids if len(fleet.soh(i)) >= 400][:2])
    t = forecast(one, h=250, at=150, model=name, level=80)
    wide = (t[f'{name}-hi-80'] - t[f'{name}-lo-80']).to_numpy().reshape(2, 250)
    assert t[name].between(.2, 1.3).all() and (wide > 0).all()
    assert (wide[:, -1] > wide[:, load_model(name).horizon - 1]).all()               # further away, less is known

def test_firmware_answers_as_its_integers(tmp_path, fleet):
    from battnb.deploy import generate, load_int, quantize
    from battnb.evaluation import fit_ridge
    from battnb.outlook import forecast, load_model
    from battnb.windows import make_windows
    w = make_windows(fleet.take(fleet.ids[:8]), stride=96)
    generate(quantize(fit_ridge(w), w.ctx), tmp_path/'fw')
    t = forecast(fleet.take(fleet.ids[:2]), h=96, model=tmp_path/'fw', level=())
    want = load_int(tmp_path/'fw')(fleet.soh(fleet.ids[0])[None, -96:])[0]
    np.testing.assert_allclose(t[t.cell_id == fleet.ids[0]].fw, want, atol=1e-6)
    assert load_model(tmp_path/'fw').spread == 'none'


# ---------------------------------------------------------------- run
TINY = dict(preset='tiny', search_steps=1, tune_steps=1, student_steps=4, drawn=20, units=(4, 8))

@pytest.fixture(scope='session')
def mine(fleet): return fleet.take([i for i in fleet.ids if 300 < len(fleet.soh(i)) < 700][:9])

def test_few_own_cells_are_not_trained_on(base, mine, tmp_path, capsys):
    from battnb.pipeline import run
    two = mine.take(mine.ids[:2]).cycles.assign(cell_id=lambda t: t.cell_id.map({mine.ids[0]: 'Zelle Ü/1', mine.ids[1]: '=cmd|x'}))
    s = run(two, tmp_path/'two', base=base, **TINY)
    assert not s['tuned'] and 'zero-shot' in s['why'] and 'tuning takes 8' in s['why'] and s['why'] in capsys.readouterr().err
    assert all(r['kind'] == 'simulated' for r in s['sets'] if r['training']) and s['firmware']['mismatches'] == 0
    assert {r['dataset'] for r in s['scores'] if r['role'] == 'unseen'} == {'table'}
    page = (tmp_path/'two'/'report.html').read_text()
    assert 'Zelle Ü/1' in page and '=cmd|x' in page and page.count('<li data-id=') == 2

@pytest.fixture(scope='session')
def finished(base, mine, tmp_path_factory):
    "A run on nine own cells: its folder."
    from battnb.pipeline import run
    out = tmp_path_factory.mktemp('run')/'out'
    run(mine.cycles, out, base=base, **TINY)
    return out

def test_table_report_and_summary_agree(finished, mine):
    from battnb.core import load_results
    from battnb.evaluation import NAIVE
    assert (ends := json.loads((finished/'teacher'/'conformal.json').read_text())['ends']) and set(ends) == {'lo', 'hi'}, 'ends of life far ahead come from recorded ends, not from a band made for 96 steps'
    s = json.loads((finished/'summary.json').read_text())
    results, told = load_results(finished/'results')
    models = {'teacher', 'student fp32', 'student int8', 'ridge', *NAIVE}
    assert s['tuned'] and set(results.model) == models == {r['model'] for r in s['scores']}
    assert told['params']['seed'] == 0
    page = (finished/'report.html').read_text()
    for r in s['scores']: assert f"{r['mae']:.3f}" in page
    for k in ('instructions', 'flash_bytes'): assert f"{s['firmware'][k]:,}" in page
    assert 'not measured on a board' in page and s['firmware']['checked'] >= 1000
    life, fc = (pd.read_parquet(finished/f'{n}.parquet') for n in ('life', 'forecasts'))
    assert set(life.cell_id) == set(fc.cell_id) == set(mine.ids)

@pytest.mark.skipif(not browser.find() and os.environ.get('CI') != 'true', reason='no Chromium or Chrome found (required on CI)')
def test_the_page_in_a_browser(finished, mine):
    with browser.Browser() as b:
        for size in browser.SIZES:
            for dark in (False, True):
                b.open((finished/'report.html').as_uri(), size, dark)
                assert b.errors == []
                assert b.eval('document.documentElement.scrollWidth <= innerWidth + 1'), f'the page is wider than the {size}'
                light = b.eval("getComputedStyle(document.body).backgroundColor") == 'rgb(255, 255, 255)'
                assert light != dark
        assert b.eval("performance.getEntriesByType('resource').length") == 0      # nothing is loaded
        assert b.eval("[...document.querySelectorAll('svg[role=img]')].every(s => s.getAttribute('aria-label').length > 20)")
        assert b.eval("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))")
        b.eval(f"(() => {{ const f = document.getElementById('find'); f.value = {mine.ids[0]!r}; f.oninput() }})()")
        assert b.eval("[...document.querySelectorAll('#cards li')].filter(x => !x.hidden).length") == 1 and b.eval("document.getElementById('count').textContent").startswith('1 of')
        b.eval("(() => { const f = document.getElementById('find'); f.value = ''; f.oninput(); const o = document.getElementById('order'); o.value = 'soh'; o.onchange() })()")
        soh = b.eval("[...document.querySelectorAll('#cards li')].map(x => +x.dataset.soh)")
        assert soh == sorted(soh) and len(soh) == len(mine)
        b.eval("document.getElementById('theme').click()")
        assert b.eval("getComputedStyle(document.body).backgroundColor") == 'rgb(255, 255, 255)'

def test_messy_files_reach_a_plan_or_a_sentence(tmp_path):
    "What a run would refuse in its last step is refused in its first; what was left out is said."
    from battnb.pipeline import _check_data, plan_of
    from test_foreign import RAW, REFUSED, TAB
    for name, data in [('pec', RAW['pec'][0]), *((n, TAB[n]) for n in ('german_mah', 'nan_tail', 'sum_row', 'wide_rows', 'group_header', 'html_xls'))]:
        path = tmp_path/name; path.write_bytes(data)
        try: plan = plan_of(path, 0)
        except InputError as e: assert name in REFUSED and str(e).startswith((name, f"'{name}")), (name, e); continue
        if name in RAW:
            with pytest.raises(InputError, match='no cell has the 12 cycles that a forecast needs; the longest has 4'): _check_data(plan, 'timer-mini')
            continue
        assert not plan.is_tuned and f'0 of {len(plan.mine)} cells have 192 cycles' in plan.why
        assert plan.why.startswith('Left out as unusable, see the report: ') == (name in ('nan_tail', 'sum_row')), plan.why
        notes = _check_data(plan, 'timer-mini')['cleaned']
        assert any(n['severity'] == 'error' for n in notes) == (name in ('nan_tail', 'sum_row'))

def test_two_runs_in_one_folder_are_refused(base, mine, tmp_path, monkeypatch):
    from battnb import pipeline
    began, go = threading.Event(), threading.Event()
    def slow(*args): began.set(); go.wait(30); raise KeyboardInterrupt
    monkeypatch.setattr(pipeline, '_check_data', slow)
    def first():
        try: pipeline.run(mine.cycles, tmp_path/'one', base=base, **TINY)
        except KeyboardInterrupt: pass
    t = threading.Thread(target=first); t.start(); began.wait(60)
    with pytest.raises(InputError, match='another run is at work'): pipeline.run(mine.cycles, tmp_path/'one', base=base, **TINY)
    go.set(); t.join()
    with pytest.raises(InputError, match='seed: 0 then, 1 now'): pipeline.run(mine.cycles, tmp_path/'one', 1, base=base, **TINY)

@pytest.mark.parametrize('change, said', [(dict(preset='huge'), 'preset must be one of'), (dict(widths=3), "no setting 'widths'"), (dict(base='nope'), 'nope')])
def test_refusals_of_run(base, mine, tmp_path, change, said):
    from battnb.pipeline import run
    with pytest.raises(InputError, match=said): run(mine.cycles, tmp_path/'x', **(dict(base=base, preset='tiny') | change))

def test_unwritable_folder_and_damaged_note(base, mine, tmp_path):
    from battnb.pipeline import run
    (tmp_path/'file').touch()
    with pytest.raises(InputError, match='cannot write'): run(mine.cycles, tmp_path/'file'/'x', base=base, preset='tiny')
    (tmp_path/'d'/'steps').mkdir(parents=True); (tmp_path/'d'/'steps'/'run.json').write_text('{"settings": ')
    with pytest.raises(InputError, match='damaged'): run(mine.cycles, tmp_path/'d', base=base, preset='tiny')

def test_plan_of_measured_sets(tmp_path, fleet):
    "A folder laid out like the measured sets, made of simulated cells under their names."
    from battnb.pipeline import plan_of
    as_set = {'SIM_LFP': 'MATR', 'SIM_NMC': 'CLO', 'SIM_NCA': 'TJU', 'SIM_LARGE': 'CALCE'}
    cells = fleet.cells[fleet.cells.dataset.isin(as_set)].assign(dataset=lambda t: t.dataset.map(as_set))
    cells.to_parquet(tmp_path/'cells.parquet'); fleet.cycles[fleet.cycles.cell_id.isin(cells.cell_id)].merge(cells[['cell_id', 'dataset']]).to_parquet(tmp_path/'cycles.parquet')
    plan = plan_of(tmp_path)
    assert set(plan.train) == {'MATR', 'CLO', 'TJU'} and set(plan.unseen) == {'CALCE'} and plan.kin['MATR'] == plan.kin['CLO'] != plan.kin['TJU']
    assert not {i for c in plan.train.values() for i in c.ids} & {i for part in (plan.val, plan.test, plan.unseen) for c in part.values() for i in c.ids}


# ---------------------------------------------------------------- the page
def test_a_thousand_cells_make_a_usable_page(fleet):
    from battnb.outlook import forecast, life
    from battnb.report import cards
    ids = [fleet.ids[k % len(fleet.ids)] for k in range(1000)]
    cycles = pd.concat([fleet.rows(i).head(150 + k % 100).assign(cell_id=f'{i} {k}') for k, i in enumerate(ids)])
    many = Cells(cycles[['cell_id', 'cycle', 'cap_ah', 'soh']].reset_index(drop=True), pd.DataFrame(dict(cell_id=[f'{i} {k}' for k, i in enumerate(ids)], dataset='x', cadence='per_cycle', soh_ref='nominal')))
    begin = time.process_time()
    fc = forecast(many, 96, 'linear-48', ()).rename(columns={'linear-48': 'teacher'})
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); ends = life(many, model='linear-48')
    made = cards(many, fc, ends)
    assert len(made) == 1000 and sum(len(c['svg']) for c in made) < 6e6 and time.process_time() - begin < 30

def test_a_band_stays_inside_its_picture(fleet):
    "A band that opens downwards ends at the axis, whatever the numbers are."
    from battnb.report import Frame, cell_svg
    import re
    i = fleet.ids[0]; n = 200
    x, y = fleet.cycle(i)[:n], fleet.soh(i)[:n]
    ahead = np.arange(1, 97); mid = y[-1] - 1e-4*ahead
    fc = pd.DataFrame({'cutoff': x[-1], 'cycle': x[-1] + ahead, 'teacher': mid, 'student int8': mid, 'teacher-lo-80': mid - .02*ahead, 'teacher-hi-80': mid + .02*ahead})
    svg = cell_svg(x, y, fc, dict(eol_cycle=None, lo=None, hi=None, reason=''), 'a cell')
    band = re.search(r'class="band" d="([^"]+)"', svg).group(1)
    ys = [float(v) for v in re.findall(r'[ML]?[\d.]+[ ,](-?[\d.]+)', band)]
    f = Frame((0, 1), (0, 1))
    assert ys and min(ys) >= f.top - .1 and max(ys) <= f.bottom + .1, (min(ys), max(ys), f.top, f.bottom)
