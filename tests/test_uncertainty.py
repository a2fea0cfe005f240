"""Intervals: promises checked where the truth is known, limit cases, files, and bad input."""
import json, math, warnings
import numpy as np, pandas as pd, pytest, torch
from dataclasses import replace
from statistics import NormalDist
from battnb.core import InputError, stream
from battnb.ends import crossing, eol_interval, with_ends
from battnb.following import CAP, Adaptive, among, follow, learn_fade, replay
from battnb.uncertainty import (REST, UNITS, Conformal, calibrate, cellwise_quantile, coverage, difficulty, crps, interval_score, max_level, min_cells, pinball, restless)

H, Q = 12, (.025, .1, .25, .5, .75, .9, .975)
Z = np.array([NormalDist().inv_cdf(q) for q in Q])

def toy(gen, n, scale=1.):
    "Errors (windows, H) of n cells of different restlessness, correlated in time and within a cell; restless cells give fewer windows."
    rest = scale*np.exp(.5*gen.normal(size=n))
    cell = np.repeat(np.arange(n), np.clip(8*scale/rest, 1, 25).astype(int))
    walk = gen.normal(size=(len(cell), H)).cumsum(1) + gen.normal(size=n)[cell, None]*np.arange(1, H+1)**.5
    return rest[cell, None]*walk/H**.5, cell

def per_cell(ok, cell): return pd.Series(np.asarray(ok, float)).groupby(cell).mean()


# ---------------------------------------------------------------- the promise
@pytest.fixture(scope='module')
def simulated():
    gen, rows, n = stream(7, 'promise'), [], 24
    for _ in range(160):
        (err, cell), (new, whose) = toy(gen, n), toy(gen, 12)
        conf = calibrate(np.zeros_like(err), err, cell, (.8, .95))
        pooled = np.quantile(np.abs(err), .8, axis=0)
        for lv in (.8, .95):
            for unit in UNITS:
                lo, hi = conf.bands(np.zeros_like(new), (lv,), unit)[lv]
                rows.append(dict(level=lv, unit=unit) | coverage(lo, hi, new, whose).to_dict())
        rows.append(dict(level=.8, unit='pooled') | coverage(-pooled + 0*new, pooled + 0*new, new, whose).to_dict())
    t = pd.DataFrame(rows).groupby(['level', 'unit'])
    return t.mean(), t.sem(), n

@pytest.mark.parametrize('level', (.8, .95))
@pytest.mark.parametrize('unit,what', [('point', 'points'), ('curve', 'curves'), ('cell', 'cells'), ('row', 'rows')])
def test_coverage_of_new_cells(simulated, level, unit, what):
    mean, sem, n = simulated
    got, noise = mean.loc[(level, unit), what], sem.loc[(level, unit), what]
    slack = .015 if unit == 'row' else .005               # the row unit is exact only in the limit; the ruler is measured on the cells
    assert level - 3*noise - slack <= got <= level + 1/(n+1) + 3*noise + .01, (got, noise)

def test_pooling_rows_covers_too_little(simulated):
    mean, _, _ = simulated
    assert mean.loc[(.8, 'pooled'), 'curves'] < .65 and mean.loc[(.8, 'pooled'), 'points'] < .78

def test_cell_unit_is_the_exact_split_conformal_rank():
    "With one score a cell and no ties coverage is k/(n+1) exactly: within binomial bounds over many new cells."
    gen, n, hits = stream(1, 'rank'), 19, 0
    for _ in range(2000):
        s = gen.exponential(size=n+1)
        hits += s[-1] <= cellwise_quantile(s[:-1], np.arange(n), [.9])[0]
    expect = math.ceil(.9*20)/20
    assert abs(hits/2000 - expect) < 4*(expect*(1-expect)/2000)**.5


# ---------------------------------------------------------------- limit cases
def test_cellwise_quantile_by_hand():
    assert cellwise_quantile([3., 1, 2], ['a', 'b', 'c'], [.5]).tolist() == [2]
    assert cellwise_quantile([3., 1, 2], ['a', 'b', 'c'], [.76]).tolist() == [np.inf]
    assert cellwise_quantile([[1, np.nan], [9, 9]], ['a', 'b'], [.3]).tolist() == [1]        # NaN leaves no trace in the count
    with pytest.raises(ValueError, match='at least one known score'): cellwise_quantile([np.nan], ['a'], [.5])

def test_radius_grows_with_level_and_unit():
    err, cell = toy(stream(2, 'grow'), 40)
    conf = calibrate(np.zeros_like(err), err, cell)
    for u in UNITS: assert (np.diff(np.nan_to_num(conf.radius[u][''], posinf=1e9)) >= 0).all()
    for lv in (.5, .8, .95): assert conf.at(lv, 'point') <= conf.at(lv, 'curve') <= conf.at(lv, 'cell')

def test_scale_of_the_errors_only_scales_the_bands():
    err, cell = toy(stream(3, 'scale'), 30)
    one, ten = (calibrate(np.zeros_like(err), k*err, cell) for k in (1, 10))
    np.testing.assert_allclose(ten.half_widths(.8), 10*one.half_widths(.8), rtol=1e-9)

def test_repeating_every_window_of_a_cell_changes_nothing_but_rows():
    err, cell = toy(stream(4, 'repeat'), 20)
    times = np.where(cell == 3, 9, 1)
    a, b = calibrate(0*err, err, cell, ruler=np.ones(H)), calibrate(0*err.repeat(times, 0), err.repeat(times, 0), cell.repeat(times), ruler=np.ones(H))
    for u in ('point', 'curve', 'cell'): np.testing.assert_array_equal(a.radius[u][''], b.radius[u][''])
    assert not np.array_equal(a.radius['row'][''], b.radius['row'][''])

def test_unknown_future_is_left_out():
    err, cell = toy(stream(5, 'nan'), 20)
    extra = np.full((3, H), np.nan)
    a = calibrate(0*err, err, cell)
    b = calibrate(np.zeros((len(err)+3, H)), np.concatenate([err, extra]), np.append(cell, [0, 1, 99]))
    assert b.at(.8, 'curve') == a.at(.8, 'curve') and b.at(.8) == pytest.approx(a.at(.8))

def test_horizon_shorter_than_calibrated_and_longer():
    err, cell = toy(stream(6, 'short'), 20)
    conf = calibrate(0*err, err, cell)
    np.testing.assert_array_equal(conf.bands(np.zeros((2, 5)))[.8][1], conf.bands(np.zeros((2, H)))[.8][1][:, :5])
    with pytest.raises(ValueError, match=r'got \(2, 13\)'): conf.bands(np.zeros((2, H+1)))

def test_quantile_model_keeps_its_own_widening_and_asymmetry():
    gen = stream(8, 'quantiles')
    width = .01*np.arange(1, H+1)
    q = .9 + width[:, None]*np.where(Z > 0, Z, 3*Z)                      # lower side three times as wide
    y = .9 + width*(lambda z: np.where(z > 0, z, 3*z))(gen.normal(size=(3000, H)))*2     # truth twice as wide
    conf = calibrate(np.broadcast_to(q, (3000, H, 7)), y, np.arange(3000), qlevels=Q)
    assert conf.at(.8)/NormalDist().inv_cdf(.9) == pytest.approx(2, abs=.05)
    lo, hi = conf.bands(q[None], (.8,))[.8]
    np.testing.assert_allclose((.9-lo)/(hi-.9), 3, rtol=1e-6)
    np.testing.assert_allclose((hi-lo)[0]/(hi-lo)[0, 0], np.arange(1, H+1), rtol=1e-6)

def test_constant_collapsed_and_crossing_quantiles_survive():
    q = np.full((30, H, 7), .9); q[::2] = q[::2]*np.linspace(1.01, .99, 7)
    y = .9 + .001*stream(9, 'y').normal(size=(30, H))
    conf = calibrate(q, y, np.arange(30), qlevels=Q)
    lo, hi = conf.bands(q)[.95]
    assert np.isfinite(lo).all() and (lo < hi).all() and ((y >= lo) & (y <= hi)).mean() > .9

def test_torch_and_numpy_agree():
    err, cell = toy(stream(10, 'torch'), 20)
    a, b = calibrate(0*err, err, cell), calibrate(torch.zeros(err.shape), torch.from_numpy(err), cell)
    assert a.at(.8) == b.at(.8)
    np.testing.assert_array_equal(b.bands(torch.zeros(2, H))[.8][0], a.bands(np.zeros((2, H)))[.8][0])

def test_difficulty_by_window():
    ctx = torch.cat([1 - 1e-4*torch.arange(96.)[None], 1 - 2e-5*torch.arange(96.)[None]**2])
    d = difficulty(ctx, H)
    assert d.shape == (2, H) and d[1, -1] > 10*d[0, -1] and difficulty(ctx[:, :24], H).shape == (2, H)
    err, cell = toy(stream(11, 'difficulty'), 30)
    own = np.abs(stream(11, 'own').normal(size=(len(err), 1))) + np.ones(H)
    conf = calibrate(0*err, own*err, cell, ruler=own)
    plain = calibrate(0*err, err, cell, ruler=np.ones(H))
    assert conf.at(.8, 'curve') == pytest.approx(plain.at(.8, 'curve'))            # errors and rulers scaled alike
    with pytest.raises(ValueError, match='pass ruler='): conf.bands(np.zeros((2, H)))
    with pytest.raises(ValueError, match='a ruler for each window'): conf.half_widths(.8)


# ---------------------------------------------------------------- too few cells
@pytest.mark.parametrize('level', (.5, .8, .9, .95, .99))
def test_min_cells_is_the_inverse_of_max_level(level):
    n = min_cells(level)
    assert max_level(n) >= level - 1e-12 and (n == 1 or max_level(n-1) < level)
    s = np.arange(1, 300)
    assert np.isfinite(cellwise_quantile(s[:n], s[:n], [level])[0]) and np.isinf(cellwise_quantile(s[:n-1], s[:n-1], [level])[0] if n > 1 else np.inf)

def test_too_few_cells_says_so():
    err, cell = toy(stream(12, 'few'), 12)
    with pytest.raises(InputError, match='level 0.95 needs at least 19 calibration cells, got 12: the highest level that they support is 0.92'): calibrate(0*err, err, cell)
    with pytest.warns(UserWarning, match='above it bands are infinite'): conf = calibrate(0*err, err, cell, few='warn')
    lo, hi = conf.bands(np.zeros((1, H)))[.95]
    assert np.isneginf(lo).all() and np.isposinf(hi).all() and np.isfinite(conf.bands(np.zeros((1, H)))[.8][0]).all()
    with warnings.catch_warnings():
        warnings.simplefilter('error'); calibrate(0*err, err, cell, (.8, .9))

def test_bad_input_names_the_rule_and_the_value():
    err, cell = toy(stream(13, 'bad'), 20)
    with pytest.raises(ValueError, match='must agree'): calibrate(0*err, err[:-1], cell)
    with pytest.raises(ValueError, match='contain 0.5'): calibrate(np.zeros((*err.shape, 2)), err, cell, qlevels=(.1, .9))
    with pytest.raises(ValueError, match="few must be 'raise' or 'warn', got 'no'"): calibrate(0*err, err, cell, few='no')
    with pytest.raises(ValueError, match='belong to one group'): calibrate(0*err, err, cell, group=np.arange(len(cell)).astype(str))
    conf = calibrate(0*err, err, cell)
    for call, msg in ((lambda: conf.at(80), 'got 80'), (lambda: conf.at(.8, 'week'), "got 'week'"), (lambda: conf.at(.8, group='NMC'), "got 'NMC'"), (lambda: min_cells(0), 'got 0'),
                      (lambda: Adaptive(conf, eta=0), 'got 0'), (lambda: Adaptive(conf, unit='cell'), "got 'cell'"), (lambda: crossing(np.ones((1, 3)), hold=0), 'got 0')):
        with pytest.raises(ValueError, match=msg): call()


# ---------------------------------------------------------------- groups
def grouped(gen, loud, quiet):
    (a, ca), (b, cb) = toy(gen, loud), toy(gen, quiet, .25)
    return np.concatenate([a, b]), np.concatenate([ca, 1000+cb]), np.repeat(['loud', 'quiet'], [len(a), len(b)])

def test_group_radius_lies_between_own_and_pooled():
    err, cell, g = grouped(stream(14, 'between'), 60, 40)
    r = {k: calibrate(0*err, err, cell, (.8,), ruler=np.ones(H), group=g, shrink=k).at(.8, 'point', 'quiet') for k in (0, 5, 20, 1e9)}
    everyone = calibrate(0*err, err, cell, (.8,), ruler=np.ones(H)).at(.8)
    alone = calibrate(0*err[g == 'quiet'], err[g == 'quiet'], cell[g == 'quiet'], (.8,), ruler=np.ones(H)).at(.8)
    assert r[0] == alone and r[1e9] == everyone and r[0] < r[5] < r[20] < r[1e9]

def test_small_group_borrows_and_large_group_speaks():
    gen, ratio = stream(15, 'borrow'), {}
    for n in (2, 200):
        err, cell, g = grouped(gen, 60, n)
        conf = calibrate(0*err, err, cell, (.8,), ruler=np.ones(H), group=g, shrink=20)
        alone = cellwise_quantile(np.abs(err[g == 'quiet']), cell[g == 'quiet'], [.8])[0]
        ratio[n] = conf.at(.8, 'point', 'quiet')/conf.at(.8), conf.at(.8, 'point', 'quiet')/alone
    assert ratio[2][0] > .8 and np.isfinite(ratio[2][0]) and ratio[200][1] < 1.4

def test_own_group_alone_needs_enough_cells():
    err, cell, g = grouped(stream(16, 'alone'), 60, 3)
    with pytest.raises(InputError, match="got 3 of group 'quiet'"): calibrate(0*err, err, cell, (.8,), group=g, shrink=0)
    calibrate(0*err, err, cell, (.8,), group=g, shrink=20)

def test_group_coverage_in_simulation():
    gen, got = stream(17, 'groups'), []
    for _ in range(150):
        err, cell, g = grouped(gen, 40, 25)
        new, whose = toy(gen, 10, .25)
        conf = calibrate(0*err, err, cell, (.8,), ruler=np.ones(H), group=g, shrink=0)
        got.append(per_cell((np.abs(new) <= conf.at(.8, 'curve', 'quiet')).all(1), whose).mean())
    assert .8 - 3*np.std(got)/150**.5 <= np.mean(got) <= .8 + 1/26 + 3*np.std(got)/150**.5

def test_bands_by_group_of_each_window():
    err, cell, g = grouped(stream(18, 'rows'), 40, 30)
    conf = calibrate(0*err, err, cell, (.8,), group=g)
    both = conf.bands(np.zeros((2, H)), (.8,), group=np.array(['quiet', 'loud']))[.8][1]
    for i, name in enumerate(('quiet', 'loud')): np.testing.assert_array_equal(both[i], conf.bands(np.zeros((1, H)), (.8,), group=name)[.8][1][0])
    assert (both[0] < both[1]).all() and conf.groups == ['loud', 'quiet']


# ---------------------------------------------------------------- online
@pytest.mark.parametrize('unit', ('point', 'curve'))
def test_adaptive_recovers_after_a_shift(unit):
    gen = stream(19, 'shift')
    err, cell = toy(gen, 60)
    conf = calibrate(0*err, err, cell)
    y = gen.normal(size=(1200, H)).cumsum(1)/H**.5*np.where(np.arange(1200) < 400, 1, 3)[:, None]
    live = Adaptive(conf, .8, unit)
    missed = [live.update(np.zeros((1, H)), v[None]) for v in y]
    lo, hi = conf.bands(np.zeros_like(y), (.8,), unit)[.8]
    ok = (y >= lo) & (y <= hi)
    static = (ok.all(1) if unit == 'curve' else ok.mean(1))[600:].mean()
    assert static < .6 and abs(1 - np.mean(missed[600:]) - .8) < .03
    assert np.mean(missed) == pytest.approx(.2 + math.log(live.factor)/(live.eta*1200), abs=1e-9)       # Eq. 4, summed

def test_follow_is_the_same_rule_and_respects_its_cap():
    gen = stream(20, 'follow')
    err, cell = toy(gen, 20)
    conf = calibrate(0*err, err, cell)
    past = np.abs(gen.normal(size=(3, 40, H)))
    for unit in ('point', 'curve'):
        got = follow(past, 1., .8, unit, every=H, eta=.1)
        for i in range(3):
            log, want = 0., [0.]
            for s in past[i]:
                out = s > math.exp(log)
                log += .1*((out.any() if unit == 'curve' else out.mean()) - .2); want.append(log)
            np.testing.assert_allclose(np.log(got[i]), want, atol=1e-12)
    assert follow(np.full((1, 99, H), 1e9), conf.at(.8), every=4).max() == pytest.approx(CAP) and follow(np.zeros((1, 999, H)), 1., every=4).min() == pytest.approx(1/CAP)

def test_follow_uses_only_what_was_answered_by_then():
    "The factor of forecast t depends on no point that comes after t, whatever the later points are."
    gen = stream(21, 'causal')
    a = np.abs(gen.normal(size=(1, 10, 48))); b = a.copy()
    b[0, 6, 24:] += 9; b[0, 7:] += 9                       # answered at step 8 and later
    for unit in ('point', 'curve'):
        one, two = (follow(x, 1., .8, unit, every=24)[0] for x in (a, b))
        np.testing.assert_array_equal(one[:8], two[:8])
        assert (one[8:] != two[8:]).any()

def test_follow_of_every_level_and_unit_reaches_the_promise_on_a_long_stream():
    gen = stream(22, 'long')
    past = np.abs(gen.standard_t(3, size=(40, 400, 8)))*np.exp(.5*gen.normal(size=(40, 1, 1)))
    for unit in ('point', 'curve'):
        for level in (.5, .8, .95):
            begin = np.quantile(past if unit == 'point' else past.max(2), level)
            r = begin*follow(past, begin, level, unit, every=8)[:, :-1]
            inside = past <= r[..., None]
            got = (inside.mean() if unit == 'point' else inside.all(2).mean())
            assert abs(got - level) < .03, (unit, level, got)

def test_adaptive_ignores_what_has_not_come():
    err, cell = toy(stream(21, 'later'), 20)
    live = Adaptive(calibrate(0*err, err, cell))
    assert math.isnan(live.update(np.zeros((2, H)), np.full((2, H), np.nan))) and live.factor == 1
    part = np.full((1, H), np.nan); part[0, 0] = 1e9
    assert live.update(np.zeros((1, H)), part) == 1 and live.factor == pytest.approx(math.exp(live.eta*.8))


# ---------------------------------------------------------------- files
@pytest.mark.parametrize('kind', ('point', 'quantile', 'window'))
def test_json_round_trip(tmp_path, kind):
    err, cell = toy(stream(22, 'json'), 12)
    pred = .9 + .01*np.broadcast_to(Z, (*err.shape, 7)) if kind == 'quantile' else np.full(err.shape, .9)
    ruler = np.ones(err.shape) if kind == 'window' else None
    with pytest.warns(UserWarning): conf = calibrate(pred, .9+.01*err, cell, qlevels=Q if kind == 'quantile' else None, ruler=ruler, few='warn', group=np.where(cell < 6, 'a', 'b'), note=dict(model='x', ß='ü'))
    path = conf.to_json(tmp_path/'conformal.json')
    back = Conformal.from_json(path)
    assert (back.cells, back.ruler, back.qlevels, back.note, back.groups) == (conf.cells, conf.ruler, conf.qlevels, conf.note, ['a', 'b'])
    json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f'{c} is not JSON'))
    for lv in (.8, .95):
        for a, b in zip(conf.bands(pred, (lv,), 'curve', 'a', ruler=ruler)[lv], back.bands(pred, (lv,), 'curve', 'a', ruler=ruler)[lv]): np.testing.assert_array_equal(a, b)
    assert path.stat().st_size < 70_000

@pytest.mark.parametrize('text', ('', '{', '[]', '{}', '{"format": "battnb-conformal-1"}', '{"format": "other"}', 'null'))
def test_not_a_calibration(tmp_path, text):
    (tmp_path/'conformal.json').write_text(text)
    with pytest.raises(InputError, match='conformal.json is not a calibration'): Conformal.from_json(tmp_path/'conformal.json')
    with pytest.raises(InputError, match='missing.json'): Conformal.from_json(tmp_path/'missing.json')


# ---------------------------------------------------------------- end of life
def test_eol_interval_is_monotone_for_any_curves():
    gen = stream(23, 'eol')
    mid = .82 + .02*gen.normal(size=(500, 40)).cumsum(1)/5
    lo, hi = mid - gen.uniform(0, .03, mid.shape), mid + gen.uniform(0, .03, mid.shape)
    y = gen.uniform(lo, hi)
    t = eol_interval(mid, lo, hi, np.full(500, 100), hold=3)
    true = np.where(crossing(y, hold=3) < 40, 101 + crossing(y, hold=3), np.inf)
    assert (t.lo <= true).all() and (true <= t.hi).all() and (t.lo <= t.eol_cycle.fillna(np.inf)).all() and (t.eol_cycle.fillna(-1) <= t.hi).all()
    assert 0 < t.censored.mean() < 1 and (t.hi.map(np.isinf) == t.censored).all() and (t.reason == '').eq(~t.censored).all()

def test_eol_censoring_step_and_cut_runs():
    line = (.9 - .01*np.arange(1, 21))[None]
    t = eol_interval(line, line-.02, line+.02, np.array([1000]), step=10, eol=.795)
    assert t.iloc[0][['eol_cycle', 'rul', 'lo', 'hi', 'censored']].tolist() == [1110, 110, 1090, 1130, False]
    t = eol_interval(line[:, :9], line[:, :9]-.02, line[:, :9]+.02, np.array([1000]), step=10, eol=.795, hold=3)
    assert math.isnan(t.eol_cycle[0]) and t.lo[0] == 1090 and t.hi[0] == np.inf and t.censored[0]      # the lower run is cut off by the horizon and counts
    t = eol_interval(line[:, :5], line[:, :5]-.02, line[:, :5]+.02, np.array([1000]), step=10, eol=.795)
    assert t.lo[0] == 1060 and t.reason[0].startswith('lower bound stays above 0.795 for 50 cycles')
    flat = np.full((1, 5), .9)
    assert np.isinf(eol_interval(flat, flat-np.inf, flat+np.inf, np.array([3])).hi[0])                 # infinite bands are open, not an error

def test_crossing():
    assert crossing(np.array([[.9, .7, .7, .9, .7, .7, .7]]), .8, 3).tolist() == [4]
    assert crossing(np.array([[.9, .7, .7]]), .8, 3).tolist() == [3] and crossing(np.array([[.9, .7, .7]]), .8, 3, ragged=True).tolist() == [1]
    assert crossing(np.array([.7, .7]), .8, 1).tolist() == [0]


# ---------------------------------------------------------------- scores
def test_scores_against_closed_forms():
    gen = stream(24, 'scores')
    many = (np.arange(999)+.5)/999
    q = np.array([NormalDist().inv_cdf(p) for p in many])[None, None]
    y = gen.normal(size=(200, 1))
    nd = NormalDist()
    exact = np.mean([v*(2*nd.cdf(v)-1) + 2*nd.pdf(v) - 1/math.pi**.5 for v in y[:, 0]])
    assert crps(np.broadcast_to(q, (200, 1, 999)), y, many) == pytest.approx(exact, abs=3e-3)
    assert crps(np.broadcast_to(y[..., None], (200, 1, 7)), y, Q) == 0
    a = pinball(np.zeros((1, 1, 3)), np.array([[-2.]]), (.1, .5, .9))
    np.testing.assert_allclose(a, [1.8, 1., .2])
    widths = np.linspace(.1, 4, 400)
    best = widths[np.argmin([interval_score(-w + 0*y, w + 0*y, y, .8) for w in widths])]
    assert abs(best - np.quantile(np.abs(y), .8)) < .15                   # proper: the honest width wins
    assert math.isfinite(interval_score(0*y, 0*y, np.where(y > 0, np.nan, y), .8))

def test_coverage_counts_cells_once_and_leaves_unknown_out():
    y = np.array([[0., 9], [0, 0], [0, np.nan], [np.nan, np.nan]])
    got = coverage(-np.ones((4, 2)), np.ones((4, 2)), y, np.array(['a', 'b', 'b', 'c']))
    assert (got.rows, got.points, got.curves, got.cells, got.width, got.n_cells) == (4/5, .75, .5, .5, 200, 2)


# ---------------------------------------------------------------- widths that follow the context
def test_restless_widths_travel_to_a_louder_cell(tmp_path):
    "Calibrated on calm contexts, asked about contexts ten times as noisy: the fixed table fails, the ruler of the context holds."
    gen = stream(23, 'rest')
    def cells(n, noise):
        x = .9 + noise*gen.normal(size=(n, 96)); return torch.from_numpy(x).float(), .9 + noise*gen.normal(size=(n, H)), np.arange(n)
    ctx, y, who = cells(60, .002); new, truth, _ = cells(60, .02)
    fixed, own = calibrate(0*y + .9, y, who), calibrate(0*y + .9, y, who, ctx=ctx)
    share = lambda c: np.mean(np.abs(truth-.9) <= c.bands(0*truth + .9, (.8,), ruler=c.widths(new))[.8][1] - .9)
    assert share(fixed) < .3 and abs(share(own) - .8) < .1
    assert own.rest == REST and fixed.rest is None
    np.testing.assert_allclose(own.half_widths(.8)*(restless(new[:1]) + REST), own.bands(np.full((1, H), .9), (.8,), ruler=own.widths(new[:1]))[.8][1][0] - .9)
    back = Conformal.from_json(own.to_json(tmp_path/'c.json'))
    assert back.rest == own.rest and np.array_equal(back.widths(new), own.widths(new))
    assert own.widths(new, 2*H).shape == (60, 2*H) and own.widths(new, 3).shape == (60, 3)

def test_old_files_without_the_new_entries_are_read(tmp_path):
    err, cell = toy(stream(24, 'old'), 30)
    path = calibrate(0*err, err, cell).to_json(tmp_path/'c.json')
    d = json.loads(path.read_text()); d.pop('rest'); d.pop('ends'); d['radius'] = {u: d['radius'][u] for u in UNITS}; path.write_text(json.dumps(d))
    old = Conformal.from_json(path)
    assert old.rest is None and old.ends is None and replay(old, np.full((2, 3, H), 1.), .8, 'curve', every=4).shape == (2, 4)

# ---------------------------------------------------------------- the cells of one file, and ends far ahead
@pytest.mark.parametrize('unit', ('point', 'curve'))
def test_replay_uses_only_what_was_answered_by_then(unit):
    gen = stream(31, 'file')
    err, cell = toy(gen, 30)
    conf = calibrate(0*err, err, cell)
    a = np.abs(gen.normal(size=(6, 10, H))); b = a.copy()
    b[0, 6, 4:] += 9; b[:, 7:] += 9                        # with a step of 4, answered at forecast 8 and later
    one, two = (replay(conf, x, .8, unit, every=4) for x in (a, b))
    np.testing.assert_array_equal(one[:, :8], two[:, :8]); assert (one[:, 8:] != two[:, 8:]).all()
    np.testing.assert_array_equal(replay(conf, a, .8, unit, 4, shrink=np.inf), conf.start(.8, unit)*follow(a, conf.start(.8, unit), .8, unit, 4))

def test_a_file_unlike_the_calibration_is_covered_from_the_second_forecast_on():
    gen, got = stream(32, 'unlike'), []
    err, cell = toy(gen, 60)
    conf = calibrate(0*err, err, cell)
    for scale in (.4, 1, 3):
        new, whose = toy(gen, 400, 1.)
        past = np.full((400, 2, H), np.nan)
        for k in range(2): past[:, k] = [scale*np.abs(new[whose == i][min(k, (whose == i).sum()-1)]) for i in range(400)]
        scores = conf.scores(np.zeros((800, H)), past.reshape(800, H)).reshape(past.shape)
        got.append(float((scores[:, 1] <= among(conf, scores, every=H)[1]).mean()))
    assert all(abs(g - .8) < .04 for g in got), got

def test_among_without_parts_waits_for_whole_curves():
    gen = stream(33, 'old file')
    err, cell = toy(gen, 30)
    conf = calibrate(0*err, err, cell)
    old = replace(conf, radius={u: conf.radius[u] for u in UNITS})
    part = np.full((5, 1, H), np.nan); part[:, 0, :4] = 9
    assert among(old, part, unit='curve', every=4)[-1] == old.start(.8, 'curve') < among(conf, part, unit='curve', every=4)[-1]

def test_ends_keep_their_promise_for_a_new_set():
    "Sets with a bias of their own: with sets counting alike, four of five ends of a new set lie inside on average."
    gen, inside, bare = stream(34, 'ends'), [], calibrate(np.zeros((20, 4)), np.ones((20, 4)), np.arange(20), few='warn')
    def world(n, sets):
        of = np.repeat(np.arange(sets), n)
        said = np.exp(gen.uniform(np.log(20), np.log(700), n*sets))
        return said, said*np.exp((gen.normal(size=sets)*.3 - .4)[of] + .2*gen.normal(size=n*sets)), np.full(n*sets, 100.), np.arange(n*sets), of
    for _ in range(40):
        made = with_ends(bare, *world(15, 12))
        said, came, seen, *_ = world(30, 5)
        lo, hi = made.left(said, seen)
        inside.append(np.mean((lo <= came) & (came <= hi)))
    assert .76 < np.mean(inside) < .9, np.mean(inside)

def test_ends_bounds_are_ordered_and_grow_with_the_level():
    gen, bare = stream(35, 'levels'), calibrate(np.zeros((20, 4)), np.ones((20, 4)), np.arange(20), few='warn')
    said = np.exp(gen.uniform(np.log(5), np.log(5000), 300))
    made = with_ends(bare, said, said*np.exp(.5*gen.normal(size=300)), np.full(300, 100.), np.arange(300))
    ask = np.geomspace(1, 1e5, 50)
    bounds = [made.left(ask, np.full(50, 100.), level) for level in (.5, .8, .95, .995)]
    for lo, hi in bounds: assert (lo >= 0).all() and (lo <= np.minimum(ask, 800)).all() and (hi >= np.minimum(ask, 800)).all()
    for (lo, hi), (lower, higher) in zip(bounds, bounds[1:]): assert (lower <= lo).all() and (higher >= hi).all()

def test_proven_ends_are_wider_and_need_laboratories():
    "Moved out so that the promise is one to a new laboratory: never narrower, infinite where they are too few, for any level from 50 % on ordered."
    gen, bare = stream(36, 'proof'), calibrate(np.zeros((20, 4)), np.ones((20, 4)), np.arange(20), few='warn')
    lab = np.repeat(np.arange(9), 10); said = np.exp(gen.uniform(np.log(20), np.log(700), 90)); seen = np.full(90, 100.)
    came = said*np.exp(np.repeat(gen.normal(0, .4, 9), 10) + .2*gen.normal(size=90))
    plain, proven = (with_ends(bare, said, came, seen, np.arange(90), lab, proof=p) for p in (False, True))
    ask, full = np.geomspace(5, 700, 30), np.full(30, 100.)
    for level in (.5, .8):
        (lo, hi), (lower, higher) = plain.left(ask, full, level), proven.left(ask, full, level)
        if level == .8: assert (lower <= lo + 1e-9).all() and (higher >= hi - 1e-9).all() and np.isfinite(higher).all()
    lo, hi = proven.left(ask, full, .95)                                       # nine laboratories cannot prove 95 %
    assert (lo == 0).all() and np.isinf(hi).all()

def test_fade_never_sees_the_scale_and_survives_flat_records(tmp_path):
    gen, q = stream(37, 'fade'), (.1, .5, .9)
    told = np.repeat(np.array([.8872, .9, .9128])[None, None], 6, 1).repeat(50, 0)
    flat, truth, sets = np.ones((50, 24)), .9 + .01*gen.normal(size=(50, 6)), np.repeat(['a', 'b'], 25)
    fade = learn_fade(told, truth, flat, sets, qlevels=q)                      # one pace for all: nothing to learn
    conf = replace(calibrate(told, truth, np.arange(50), qlevels=q), fade=fade)
    assert np.isfinite(fade).all() and np.allclose(conf.stretched(told, flat), told, atol=1e-3)
    mid = conf.stretched(told, np.where(np.arange(24) < 20, np.nan, flat))[..., 1]
    assert np.array_equal(mid, told[..., 1])
    back = Conformal.from_json(conf.to_json(tmp_path/'c.json'))
    assert back.fade == fade and np.allclose(back.stretched(told, flat), conf.stretched(told, flat))

def test_sets_count_alike():
    "A hundred calm cells of one set and ten loud ones of another: alike, the radius is that of ten and ten."
    gen = stream(38, 'alike')
    err = np.concatenate([gen.normal(size=(100, 4)), 4*gen.normal(size=(10, 4))])
    cell, sets = np.arange(110), np.repeat(['calm', 'loud'], [100, 10])
    by_cell, by_set = (calibrate(0*err, err, cell, ruler=np.ones(4), set_id=s).at(.8) for s in (None, sets))
    both = calibrate(0*err, err, cell, ruler=np.ones(4), set_id=np.repeat('one', 110)).at(.8)
    assert by_cell == both < by_set
