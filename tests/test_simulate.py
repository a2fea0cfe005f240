"""The simulator beyond its pages (electrodes, ageing, simulate, shapes): all chemistries and protocols, files, symmetry, bad input, and PyBaMM where it is installed."""
import subprocess, sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from battnb import ageing as kinetics, electrodes, shapes, simulate as sim
from battnb.ageing import CHEMISTRIES, age, sources
from battnb.core import assets_dir, stream
from battnb.data import load, problems
from battnb.electrodes import MATERIALS, Electrodes, ocp, solve_x, voltage
from battnb.shapes import curve_statistics, qv_curves, simulate_prior
from battnb.simulate import GROUPS, draw_cells, simulate_fleet, write_fleet

IDEAL = dict(noise=0., overhang=0., season_c=0.)
CALM = dict(k_sei=0., a_cyc=0., b_pos=0., b_neg=0., k_pl=0.)


# ---------------------------------------------------------------- files
@pytest.fixture(scope='module')
def twice(tmp_path_factory):
    return [write_fleet(tmp_path_factory.mktemp('fleet'), seed=0) for _ in range(2)]


def test_same_seed_same_bytes(twice):
    for a, b in zip(*twice): assert a.read_bytes() == b.read_bytes()


def test_other_seed_other_cells():
    a, b = (simulate_fleet(1, s, groups=['SIM_NCA']).cycles['cap_ah'].to_numpy()[:100] for s in (0, 1))
    assert not np.allclose(a, b)


def test_shipped_files_are_what_the_code_writes(twice):
    assert sum((assets_dir()/p.name).stat().st_size for p in twice[0]) < 3_000_000
    for path in twice[0]: pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(assets_dir()/path.name), rtol=1e-5, atol=1e-5)


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path/'fleet_cycles.parquet').write_bytes(b'old')
    monkeypatch.setattr(sim, 'fleet_cells', lambda seed: draw_cells(1, seed, ['SIM_NCA']))
    def broken(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(pd.DataFrame, 'to_parquet', broken)
    with pytest.raises(KeyboardInterrupt): write_fleet(tmp_path)
    assert (tmp_path/'fleet_cycles.parquet').read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


def test_fleet_loads_and_obeys_the_schema():
    fleet = load('fleet')
    assert not fleet.measured and set(fleet.cells['quality']) == {'simulated'}
    assert not [p for p in problems(fleet.cycles) if p['severity'] == 'error']
    assert set(fleet.cells['chemistry']) == set(CHEMISTRIES) and fleet.cells['n_points'].min() >= 300
    small, large = (fleet.cells[(fleet.cells['dataset'] == 'SIM_LARGE') == x]['nominal_cap_ah'] for x in (False, True))
    assert small.min() >= 1 and small.max() <= 5 and large.min() >= 50 and large.max() <= 280
    assert set(fleet.cells['charge_class']) == {'CC', 'CCCV', 'fast+CCCV'}
    ends = fleet.cells['min_soh']
    assert (ends > .8).sum() >= 10 and (ends < .8).sum() >= 50      # censored ones among them
    c = fleet.cycles
    assert c[['cap_ah', 'charge_cap_ah', 'temperature_c', 'resistance_ohm']].notna().all().all() and c['outlier_flag'].any()
    assert (c.groupby('cell_id')['cycle'].diff().dropna() == 1).all()


def test_lives_span_hundreds_to_thousands():
    ageing = age(draw_cells(25, 3, max_cycles=20_000, soh_stop=.8, **IDEAL), min_cycles=1)
    assert ageing.last.min() < 200 and ageing.last.max() > 2500


def test_importing_is_light():
    code = "import sys, battnb.shapes, battnb.simulate; print([m for m in ('torch', 'sklearn', 'peft', 'matplotlib.pyplot', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ---------------------------------------------------------------- one cell
@pytest.mark.parametrize('material', MATERIALS)
def test_potentials_fall_and_tables_follow(material):
    s = np.linspace(0, 1, 2001)
    assert (np.diff(ocp(material, s)) < 0).all()
    inner = s[(ocp(material, s) < 5.5) & (ocp(material, s) > .01)]
    np.testing.assert_allclose(electrodes._lookup(MATERIALS.index(material), inner)[0], ocp(material, inner), atol=2.5e-3)


def test_solver_converges_everywhere():
    pars = draw_cells(30, 11, **IDEAL)
    q, cell, cycle, e, *_ = sim._record(age(pars), 0)
    for rate, volt in ((np.where(q['cv'], .05, q['c_chg']), q['v_max']), (-q['c_dis'], q['v_min']), (0., (q['v_max'] + q['v_min'])/2)):
        np.testing.assert_allclose(voltage(e, solve_x(e, volt, rate), rate), volt, atol=1e-6)


@pytest.mark.parametrize('chemistry', CHEMISTRIES)
def test_lost_lithium_is_lost_capacity(chemistry):
    "Between wide limits the ends are cliffs, so each Ah of lithium is one Ah of capacity; within the usual limits it is never more."
    row = np.array([MATERIALS.index(chemistry)])
    for lo, hi, least in ((.1, 6.5, .0995), (CHEMISTRIES[chemistry].v_min, CHEMISTRIES[chemistry].v_max, .06)):
        caps = []
        for li in (1.15, 1.05, .95):
            e = Electrodes(row, *(np.array([v]) for v in (1.5, 1.3, li)))
            caps.append(float((e.neg*(solve_x(e, hi, 0.) - solve_x(e, lo, 0.)))[0]))
        assert (-np.diff(caps) > least).all() and (-np.diff(caps) < .1005).all()


def test_flat_without_ageing_at_any_rate():
    for cv in (True, False):
        flat = simulate_fleet(3, 0, start=1., temperature_c=25., max_cycles=150, cv=cv, **CALM, **IDEAL)
        np.testing.assert_allclose(flat.cycles['soh'], 1., atol=1e-5)
        np.testing.assert_allclose(flat.cycles['charge_cap_ah'], flat.cycles['cap_ah'], rtol=1e-5)


def test_higher_rate_less_capacity_colder_less_capacity():
    pars = draw_cells(4, 0, spread=0., cv=True, **IDEAL)
    p = {k: pars[k].to_numpy() for k in pars}
    cap = lambda c, t: kinetics._discharge(p | dict(c_dis=c), kinetics._electrodes(p, kinetics._unaged(p['pos']), t))[2]
    assert (cap(.2, 25.) > cap(1., 25.)).all() and (cap(1., 25.) > cap(2., 25.)).all()
    assert (cap(1., 40.) > cap(1., 25.)).all() and (cap(1., 25.) > cap(1., 0.)).all()


# ---------------------------------------------------------------- ageing
def test_slower_kinetics_stretch_time_exactly():
    pars = draw_cells(6, 1, soh_stop=.75, max_cycles=100_000, **IDEAL)
    half = pars.assign(**{k: pars[k]/2 for k in ('a_cyc', 'b_pos', 'b_neg', 'k_pl')}, k_sei=pars['k_sei']/np.sqrt(2))
    np.testing.assert_allclose(age(half, 1).last/age(pars, 1).last, 2., rtol=.01)


def test_finer_steps_same_cell():
    pars = draw_cells(8, 2)
    np.testing.assert_allclose(age(pars, ds=.002).last, age(pars, ds=.0005).last, rtol=.01)


@pytest.mark.parametrize('change', [dict(c_chg=2.), dict(k_pl=5e-4), dict(b_neg=5e-4), dict(k_sei=.02)])
def test_what_hurts_shortens_life(change):
    base = dict(soh_stop=.8, max_cycles=50_000, ohm_neg=.05, temperature_c=25., c_chg=.7, **IDEAL)
    pars = draw_cells(5, 0, groups=['SIM_NMC', 'SIM_LFP'], **base)
    assert (age(pars.assign(**change), 1).last < age(pars, 1).last).all()


def test_losses_only_grow_and_start_at_nothing():
    ageing = age(draw_cells(4, 0))
    for k in ('sei', 'cyc', 'pl', 'lam_pos', 'lam_neg'):
        assert (ageing.knots[k][0] == 0).all() and (np.diff(ageing.knots[k], axis=0) >= 0).all()
    at = ageing.lost(np.array([1, 0, 1]), np.array([50, 10, 100]))      # any order of cells
    one = ageing.lost(np.array([0]), np.array([10]))
    assert all(np.isclose(at[k][1], one[k][0]) for k in at) and at['sei'][2] > at['sei'][0]


def test_min_cycles_is_kept():
    assert (age(draw_cells(10, 0, groups=['SIM_NCA'], max_cycles=2000, soh_stop=.7, pl_cap=20.), min_cycles=900).last >= 900).all()


# ---------------------------------------------------------------- the laboratory
def test_without_noise_only_rests_raise_capacity():
    clean = simulate_fleet(4, 5, **IDEAL)
    for i in clean.ids: assert np.diff(clean.soh(i)).max() < 2e-5, i
    saw = simulate_fleet(2, 5, groups=['SIM_NMC'], noise=0., season_c=0., checkup=50, overhang=.02, tau=15., rest_share=.8, rests=0.)
    for i in saw.ids:
        up = np.flatnonzero(np.diff(saw.soh(i)) > 2e-3) + 2           # the cycle number that is higher than the one before
        assert len(up) and set(up % 50) == {0}, i


def test_noise_level_is_what_was_asked_for():
    for asked in (1e-4, 1e-3):
        got = curve_statistics(simulate_fleet(4, 0, groups=['SIM_LFP'], noise=asked, glitches=0., overhang=0., season_c=0.))['noise_pct']/100
        np.testing.assert_allclose(got, asked, rtol=.35)


def test_glitches_are_flagged_as_outliers():
    c = simulate_fleet(3, 0, groups=['SIM_LFP'], glitches=.01).cycles
    clean = simulate_fleet(3, 0, groups=['SIM_LFP'], glitches=0.).cycles
    assert c['outlier_flag'].sum() > 10 > clean['outlier_flag'].sum()


def test_seasons_move_temperature_and_capacity():
    c = simulate_fleet(1, 0, groups=['SIM_LARGE'], season_c=8., season_cycles=300., season_phase=0., overhang=0., max_cycles=600, noise=0., **CALM).cycles
    assert c['temperature_c'].max() - c['temperature_c'].min() > 15
    assert np.corrcoef(c['temperature_c'], c['soh'])[0, 1] > .9


def test_charge_is_conserved():
    ageing = age(draw_cells(3, 4, noise=0.))
    q, cell, cycle, e, *_ = sim._record(ageing, 4)
    full, empty, cap = kinetics._discharge(q, e)
    rows = sim._cycle_table(ageing, 4)
    stock = e.li - e.neg*empty
    for i in range(len(ageing.pars)):
        m, n = cell == i, ageing.pars['nominal_cap_ah'][i]
        gap = (rows['charge_cap_ah'][m].astype(float) - rows['cap_ah'][m]).sum()/n
        assert abs(gap - (stock[m][0] - stock[m][-1])) < 1e-5*m.sum(), ageing.pars['cell_id'][i]


def test_larger_fleet_contains_the_smaller():
    a, b = simulate_fleet(2, 0, groups=['SIM_NCA']), simulate_fleet(3, 0, groups=['SIM_LFP', 'SIM_NCA'])
    for i in a.ids: np.testing.assert_allclose(a.soh(i), b.soh(i), atol=2e-5)


# ---------------------------------------------------------------- Q(V)
@pytest.mark.parametrize('cv', [True, False])
def test_qv_ends_at_the_capacity_for_every_chemistry(cv):
    ageing = age(draw_cells(2, 0, cv=cv, noise=0.))
    got, rows = qv_curves(ageing, [1, 5, 60], points=40), sim._cycle_table(ageing, 0).set_index(['cell_id', 'cycle'])['cap_ah']
    for i, c in enumerate(got['cell_id']):
        np.testing.assert_allclose(got['qv'][i, :, -1], [rows[c, k] for k in got['cycle']], rtol=2e-5)
        assert (np.diff(got['qv'][i], axis=-1) >= 0).all() and (np.diff(got['v'][i]) < 0).all()
        assert np.isclose(got['v'][i, -1], ageing.pars['v_min'][i])


def test_qv_is_nan_after_the_end_and_refuses_nonsense():
    ageing = age(draw_cells(1, 0, groups=['SIM_NCA'], max_cycles=120))
    got = qv_curves(ageing, [100, 121], points=5)['qv']
    assert np.isfinite(got[:, 0]).all() and np.isnan(got[:, 1]).all()
    for bad in (dict(cycles=[]), dict(cycles=[0, 1]), dict(points=1)):
        with pytest.raises(ValueError, match='must be'): qv_curves(ageing, **bad)


# ---------------------------------------------------------------- the prior
def test_prior_is_repeatable_and_clean():
    a, b = simulate_prior(300, 128, 7), simulate_prior(300, 128, 7)
    assert a.shape == (300, 128) and a.dtype == np.float32 and (a == b).all()
    assert not np.allclose(a, simulate_prior(300, 128, 8))
    assert np.isfinite(a).all() and a.min() > .3 and a.max() < 1.2 and (np.diff(a) < 1e-4).mean() > .999


@pytest.mark.parametrize('n, length', [(1, 2), (5, 1000), (4097, 16)])
def test_prior_sizes(n, length): assert simulate_prior(n, length).shape == (n, length)


def test_prior_whole_lives_reach_the_end():
    whole = simulate_prior(200, 64, span=(1., 1.))
    assert whole[:, 0].mean() > .93 and whole[:, -1].max() < .82


@pytest.mark.parametrize('bad', [dict(n=0), dict(n=1, length=1), dict(n=1, span=(0., 1.)), dict(n=1, span=(.5, .2)), dict(n=1, span=(.5, 1.5))])
def test_prior_refuses(bad):
    with pytest.raises(ValueError, match='must be'): simulate_prior(**bad)


def test_prior_agrees_with_the_fine_march():
    p32 = shapes._prior_cells(stream(0, 'test'), 300)
    p64 = {k: v.astype(float) if v.dtype.kind == 'f' else v for k, v in p32.items()}
    quick, slow = shapes._prior_march(p32), kinetics._march(p64, ds=.001, floor=p64['soh_stop'] - .01, limit=1e5, most=1e5)
    ends = [kinetics._crossing(h, p32['soh_stop']) for h in (quick, slow)]
    own = [shapes._resample(h['cycle'], h['soh'], 0*b, b, 100) for h, b in zip((quick, slow), ends)]
    worst = np.abs(own[0] - own[1]).max(1)
    assert np.median(worst) < .004 and np.quantile(worst, .9) < .012 and np.median(np.abs(ends[0]/ends[1] - 1)) < .02


# ---------------------------------------------------------------- parameters
def test_every_default_has_a_source_or_says_it_is_ours():
    said = ' '.join(sources()['parameter'])
    for name in ('k_sei', 'a_cyc', 'b_pos', 'b_neg', 'k_pl', 'clog', 'x_full', 'y_empty', 'ohm', 'i0_pos', 'lag_pos', 'v_min', 'ENERGY_KJ'): assert name in said, name
    for m in MATERIALS: assert m in said, m
    assert sources()['source'].str.contains('doi|arXiv|our choice|J. ').all()


def test_published_parameters_are_pinned():
    nmc, lfp = CHEMISTRIES['NMC'], CHEMISTRIES['LFP']
    assert (nmc.x_full, nmc.y_empty, nmc.v_min, nmc.v_max) == (.9014, .9084, 2.5, 4.2) and (lfp.x_full, lfp.v_min, lfp.v_max) == (.81, 2.0, 3.6)
    np.testing.assert_allclose([nmc.lag_pos, nmc.lag_neg], [5.22e-6**2/(15*4e-15)/3600, 5.86e-6**2/(15*3.3e-14)/3600], rtol=.01)


@pytest.mark.parametrize('kwargs, said', [(dict(n_cells=0), 'got 0'), (dict(groups=['SIM_LTO']), 'SIM_LTO'), (dict(temprature_c=25.), 'temprature_c')])
def test_draw_refuses(kwargs, said):
    with pytest.raises(ValueError, match=said): draw_cells(**{'n_cells': 1} | kwargs)


def test_spread_zero_builds_one_design():
    p = draw_cells(4, 0, groups=['SIM_LCO'], spread=0.)
    for k in ('k_sei', 'a_cyc', 'b_pos', 'b_neg', 'k_pl', 'clog', 'x_full', 'y_empty'): assert p[k].nunique() == 1, k
    assert set(GROUPS) >= set(p['dataset'])


# ---------------------------------------------------------------- somebody else's code
def test_the_stored_run_of_pybamm_agrees():
    "The study on PyBaMM stores its side: our side is computed here again, so that a change of the simulator is noticed without PyBaMM."
    from battnb.core import load_results
    results, story = load_results(Path(__file__).parents[1]/'results'/'pybamm.parquet')
    area, ah = .065*1.58, 96485.33212/3600
    neg, pos = area*8.52e-5*.75*33133*ah/5, area*7.56e-5*.665*63104*ah/5
    i0_neg, i0_pos = 6.48e-7*1000**.5*33133/2*3*.75/5.86e-6*8.52e-5*area/5, 3.42e-6*1000**.5*63104/2*3*.665/5.22e-6*7.56e-5*area/5
    theirs = results[results.model == 'PyBaMM']
    assert len(theirs) == 20
    for r in theirs.itertuples():
        lli, lam_pos, lam_neg = story['params']['states'][r.cell_id]
        e = Electrodes(np.array([MATERIALS.index('NMC')]), np.array([pos*(1 - lam_pos)]), np.array([neg*(1 - lam_neg)]), np.array([29866/33133*neg + 17038/63104*pos - lli]), 0., i0_pos/pos, i0_neg/neg, 5.22e-6**2/(15*4e-15)/3600, 5.86e-6**2/(15*3.3e-14)/3600)
        ours = 5*float((e.neg*(solve_x(e, 4.2, 0.) - solve_x(e, 2.5, -float(r.metric[:-1]))))[0])
        assert abs(ours/r.value - 1) < .006, (r.cell_id, r.metric, ours, r.value)

@pytest.mark.parametrize('lli, lam_pos, lam_neg', [(0, 0, 0), (.5, 0, 0), (0, .12, 0), (.4, .05, .05)])
def test_pybamm_gives_the_same_capacities(lli, lam_pos, lam_neg):
    "Needs PyBaMM, which is no dependency: in an environment of its own, `pip install pybamm` beside this package and run this file."
    pybamm = pytest.importorskip('pybamm')
    par, area, ah = pybamm.ParameterValues('Chen2020'), .065*1.58, 96485.33212/3600
    neg, pos = area*8.52e-5*.75*33133*ah/5, area*7.56e-5*.665*63104*ah/5
    li = 29866/33133*neg + 17038/63104*pos - lli/5
    i0_neg, i0_pos = 6.48e-7*1000**.5*33133/2*3*.75/5.86e-6*8.52e-5*area/5, 3.42e-6*1000**.5*63104/2*3*.665/5.22e-6*7.56e-5*area/5
    neg_left, pos_left = neg*(1 - lam_neg), pos*(1 - lam_pos)
    e = Electrodes(np.array([MATERIALS.index('NMC')]), np.array([pos_left]), np.array([neg_left]), np.array([li]), 0., i0_pos/pos, i0_neg/neg, 5.22e-6**2/(15*4e-15)/3600, 5.86e-6**2/(15*3.3e-14)/3600)
    full = float(solve_x(e, 4.2, 0.)[0])
    par['Negative electrode active material volume fraction'] *= 1 - lam_neg
    par['Positive electrode active material volume fraction'] *= 1 - lam_pos
    par['Initial concentration in negative electrode [mol.m-3]'] = full*33133
    par['Initial concentration in positive electrode [mol.m-3]'] = (li - full*neg_left)/pos_left*63104
    par['Current function [A]'] = 5.
    theirs = pybamm.Simulation(pybamm.lithium_ion.SPM(), parameter_values=par).solve(np.linspace(0, 5000, 3000))['Discharge capacity [A.h]'].entries[-1]
    ours = 5*neg_left*(full - float(solve_x(e, 2.5, -1.)[0]))
    assert abs(ours/theirs - 1) < .006
