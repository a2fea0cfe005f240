"""Scores of drawn curves: closed forms, limits, seeds, invariances, and inputs that must be refused."""
from dataclasses import replace
import numpy as np, pytest
from scipy.stats import kstest
from battnb.core import InputError, stream
from battnb.data import load
from battnb.synthesis import (STRAWMEN, Fades, Space, copying, cycles_to, fades, fades_of, floor, frechet, gaussian, halves, life_error,
                              memory, mmd, noisy_windows, overlap, physics, physics_test, residuals, scores)

U = np.linspace(0, 1, 64)


def made_up(n, seed=0):
    "Power laws with a knee, lengths log-normal: cheap cells of one distribution."
    gen = stream(seed, 'made up')
    knee, late = gen.uniform(.5, .9, (n, 1)), gen.uniform(0, 5, (n, 1))
    loss = U**gen.uniform(.7, 1.3, (n, 1)) + late*np.maximum(U - knee, 0)
    return Fades(1 - .15*loss/loss[:, -1:], np.exp(gen.normal(6.5, .4, n)))


@pytest.fixture(scope='module')
def cells(): return made_up(200)
@pytest.fixture(scope='module')
def space(cells): return Space.fit(cells)
@pytest.fixture(scope='module')
def fleet(): return load('fleet')


# ---------------------------------------------------------------- curves
@pytest.mark.parametrize('every', [1, 5, 10])
def test_cadence_does_not_change_a_curve(every):
    k = np.arange(0, 3001, every)
    f = fades_of([(k, 1.07*(1 - .15*(k/2000)**1.5))])
    assert abs(f.cycles[0] - 2000) <= 2*every + 2
    assert np.abs(f.soh[0] - (1 - .15*U**1.5)).max() < 6e-3


@pytest.mark.parametrize('end', [.95, .9, .8])
def test_end_is_where_the_caller_wants_it(end):
    k = np.arange(2001)
    f = fades_of([(k, 1 - .0002*k)], end=end)
    assert f.end == end and abs(f.cycles[0] - (1 - end)/.0002) < 15 and abs(f.soh[0, -1] - end) < 2e-3


def test_numbering_from_anywhere_and_noise_and_a_short_dip():
    k, gen = np.arange(2001), stream(0, 'noise')
    soh = 1 - .0002*k + gen.normal(0, 5e-4, len(k)); soh[100:102] = .5
    assert abs(fades_of([(k + 777, soh)]).cycles[0] - fades_of([(k, 1 - .0002*k)]).cycles[0]) < 30


def test_curves_that_do_not_arrive_are_counted():
    k = np.arange(500)
    good = (k, 1 - .0005*k)
    f = fades_of([good, (k, 1 - .0001*k), (k[:3], np.array([1, .5, .2])), good])
    assert (len(f), f.left_out) == (2, 2)
    with pytest.raises(InputError, match='none of 0 curves'): fades_of([])


def test_a_curve_drawn_on_its_own_grid_ends_on_its_last_point():
    "Generators stop exactly at the level: one point below it must be enough."
    for life in (20, 90, 700):
        grid = np.linspace(0, life, 32)
        f = fades_of([(grid, 1 - .15*(grid/life)**2)])
        assert len(f) == 1 and f.cycles[0] == life
    assert np.abs(f.soh[0] - (1 - .15*U**2)).max() < 5e-3


def test_a_steep_end_on_a_coarse_grid_is_interpolated():
    "Cutting a curve that goes deeper must give the curve that ends there."
    f = lambda k: 1 - .15*(k/700)**8
    fine, coarse = fades_of([(np.arange(701.), f(np.arange(701.)))]), fades_of([(np.linspace(0, 720, 33), f(np.linspace(0, 720, 33)))])
    assert abs(fine.cycles[0]/coarse.cycles[0] - 1) < 3e-3 and abs(fine.soh[0, -1] - coarse.soh[0, -1]) < .01


def test_whole_sets(fleet):
    f = fades(fleet)
    assert len(f) + f.left_out == len(fleet) and np.isfinite(f.soh).all() and (f.cycles > 0).all()
    assert np.abs(f.soh[:, 0] - 1).max() < .03 and np.abs(f.soh[:, -1] - .85).max() < .02
    both = f + f.take([0])
    assert len(both) == len(f) + 1 and (both.soh[-1] == f.soh[0]).all()


# ---------------------------------------------------------------- coordinates
def test_length_and_shape_have_variance_one(cells):
    z = Space.fit(cells, keep=1.)(cells)
    assert np.allclose([z[:, 0].var(ddof=1), z[:, 1:].var(0, ddof=1).sum()], 1)


def test_space_knows_no_unit_of_length(cells, space):
    double = replace(cells, cycles=7*cells.cycles)
    assert np.allclose(np.abs(Space.fit(double)(double)), np.abs(space(cells)))


def test_way_back(cells):
    s = Space.fit(cells, keep=1.)
    again = s.back(s(cells), cells)
    assert np.allclose(again.soh, cells.soh) and np.allclose(again.cycles, cells.cycles)


@pytest.mark.parametrize('rows', [[], [0], [0, 1], [0, 0, 0]])
def test_space_refuses_what_has_no_spread(cells, rows):
    with pytest.raises(ValueError, match='three or more curves that differ'): Space.fit(cells.take(rows))


# ---------------------------------------------------------------- distances
@pytest.mark.parametrize('d', [1, 3, 8])
@pytest.mark.parametrize('s', [.5, 1., 2.])
def test_frechet_of_two_normal_distributions(d, s):
    a, b = (exact(x) for x in stream(d, 'gauss').standard_normal((2, 3000, d)))
    shift, want = np.arange(d)/d, (np.arange(d)**2).sum()/d**2 + d*(1 - s)**2
    assert abs(frechet(a, shift + s*b, shrink=False) - want) < 1e-9 and abs(frechet(a, shift + s*b) - want) < .02*(1 + want)


def exact(x):
    "Mean 0 and covariance 1 to the last digit."
    x = x - x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True).reshape(x.shape[1], -1))).T


def test_frechet_of_correlated_normals_has_the_closed_form_of_commuting_covariances():
    gen = stream(0, 'rotation')
    q = np.linalg.qr(gen.standard_normal((4, 4)))[0]
    wa, wb = np.array([1, 2, 3, 4.]), np.array([4, 1, .5, 2.])
    a, b = (exact(x) for x in gen.standard_normal((2, 500, 4)))
    got = frechet(a*np.sqrt(wa) @ q.T, b*np.sqrt(wb) @ q.T, shrink=False)
    assert abs(got - ((np.sqrt(wa) - np.sqrt(wb))**2).sum()) < 1e-9


def test_frechet_survives_fewer_rows_than_columns(cells):
    a, b = cells.soh[:10], cells.soh[10:20]
    assert np.linalg.matrix_rank(np.cov(a.T)) < 64
    for shrink in (True, False): assert 0 <= frechet(a, b, shrink) < np.inf and frechet(a, a, shrink) < 1e-9


@pytest.mark.parametrize('name', ['frechet', 'mmd', 'overlap'])
def test_distances_do_not_care_for_order_and_rotation(cells, space, name):
    f = dict(frechet=lambda a, b: [frechet(a, b)], mmd=lambda a, b: [mmd(a, b, permutations=0)[0]], overlap=lambda a, b: list(overlap(a, b).values()))[name]
    a, b = space(cells)[:60], space(cells)[60:130]
    q = np.linalg.qr(stream(1, 'rotation').standard_normal((a.shape[1],)*2))[0]
    assert np.allclose(f(a, b), f(a[::-1], b[::-1])) and np.allclose(f(a, b), f(a @ q + 3, b @ q + 3))


def test_mmd_by_hand():
    a, b = np.array([[0.], [1.]]), np.array([[3.], [5.], [6.]])
    d = np.abs(np.r_[a, b] - np.r_[a, b].T)
    K = np.exp(-d**2/(2*np.median(d[np.triu_indices(5, 1)])**2))
    want = K[0, 1] + K[2:, 2:][np.triu_indices(3, 1)].mean() - 2*K[:2, 2:].mean()
    assert np.isclose(mmd(a, b, widths=(1.,), permutations=0)[0], want)


def test_p_values_of_equal_distributions_are_uniform():
    gen = stream(0, 'uniform')
    p = [mmd(*gen.standard_normal((2, 25, 2)), permutations=99, gen=gen)[1] for _ in range(200)]
    assert min(p) >= 1/100 and kstest(p, 'uniform').pvalue > .01 and np.mean(np.array(p) <= .05) < .1


def test_p_of_shuffled_labels_is_uniform_whatever_the_curves(cells, space):
    "Curves of two kinds, labels at random: the test must not see the kinds."
    x, gen = space(cells.take(slice(0, 30)) + replace(cells, cycles=3*cells.cycles).take(slice(30, 60))), stream(3, 'labels')
    p = []
    for _ in range(150):
        order = gen.permutation(60)
        p.append(mmd(x[order[:30]], x[order[30:]], permutations=99, gen=gen)[1])
    assert kstest(p, 'uniform').pvalue > .01


def test_mmd_of_a_single_point_repeated_is_zero():
    assert mmd(np.ones((10, 2)), np.ones((12, 2)))[0] == pytest.approx(0) and mmd(np.ones((10, 2)), np.ones((12, 2)))[1] == 1


@pytest.mark.parametrize('n,m', [(40, 40), (40, 80), (80, 40)])
def test_coverage_of_equal_distributions_has_its_closed_form(n, m):
    gen = stream(n + m, 'coverage')
    found = [overlap(gen.standard_normal((n, 3)), gen.standard_normal((m, 3)))['coverage'] for _ in range(150)]
    want = 1 - np.prod([(n - i)/(n + m - i) for i in (1, 2, 3)])
    assert abs(np.mean(found) - want) < 4*np.std(found)/150**.5 + .005


def test_precision_and_recall_are_each_others_mirror(cells, space):
    a, b = space(cells)[:50], space(cells)[50:150]
    assert overlap(a, b)['precision'] == overlap(b, a)['recall']


@pytest.mark.parametrize('bad', [lambda: frechet(np.ones((1, 2)), np.ones((5, 2))), lambda: frechet(np.ones((5, 2)), np.ones((5, 3))), lambda: overlap(np.ones((9, 2)), np.ones((3, 2)))])
def test_too_little_is_refused(bad):
    with pytest.raises(ValueError, match='got'): bad()


# ---------------------------------------------------------------- the floor
def test_floor_is_what_a_perfect_generator_gets(cells, space):
    limits = floor(cells, space, repeats=10)
    perfect = scores(made_up(100, 1), made_up(100, 2), space)
    for m in ('frechet', 'mmd', 'precision', 'recall', 'coverage'): assert abs(perfect[m] - limits[m].mean()) < 5*limits[m].std() + .01, m


def test_halves_are_disjoint_and_repeat(cells):
    tagged = replace(cells, cycles=np.arange(1., len(cells) + 1))
    for (a, b), (c, d) in zip(halves(tagged, 3), halves(tagged, 3)):
        assert len(a) == len(b) == 100 and not set(a.cycles) & set(b.cycles) and (a.cycles == c.cycles).all() and (b.cycles == d.cycles).all()


# ---------------------------------------------------------------- copying
@pytest.mark.parametrize('seed', range(5))
def test_the_copier_is_flagged_and_fresh_cells_are_not(seed):
    train, held, fresh = (made_up(40, 10*seed + k) for k in (1, 2, 3))
    space = Space.fit(train + held)
    assert copying(train, held, memory(train, 40, stream(seed, 'm')), space)['p_copy'] < 1e-4
    for other in (fresh, gaussian(train, 40, stream(seed, 'g'))): assert copying(train, held, other, space)['p_copy'] > 1e-3


def test_copies_alone_are_enough_when_they_are_many(cells, space):
    train, held = cells.take(slice(0, 60)), cells.take(slice(60, 120))
    half = memory(train, 30, stream(0, 'half')) + cells.take(slice(120, 150))
    assert copying(train, held, half, space)['p_copy'] < .01
    assert copying(train, held, train, space)['closer'] == 0 and copying(train, held, held, space)['closer'] == 1
    with pytest.raises(ValueError, match='got 60, 60 and 1'): copying(train, held, train.take([0]), space)


# ---------------------------------------------------------------- physics
def test_physics_of_a_curve_that_recovers():
    soh = np.r_[np.linspace(1, .9, 32), np.linspace(.92, .85, 32)][None]
    got = physics(Fades(soh, np.array([630.]))).iloc[0]
    assert got.rise_pct == pytest.approx(2) and got.life_cycles == 630 and got.start_pct == 100


def test_physics_test_sees_each_defect_where_it_is(cells):
    a, b = cells.take(slice(0, 100)), cells.take(slice(100, 200))
    clean = physics_test(a, b)
    assert (clean.p > 1e-4).all()
    slow = physics_test(a, replace(b, cycles=2*b.cycles))
    assert slow.p['life_cycles'] < 1e-6 and slow.drop('life_cycles').equals(clean.drop('life_cycles'))
    rough = physics_test(a, replace(b, soh=b.soh + stream(0, 'r').normal(0, 2e-3, b.soh.shape)))
    assert rough.p['rough_pct'] < 1e-6 and rough.p['rise_pct'] < 1e-6 and rough.p['life_cycles'] == clean.p['life_cycles']


# ---------------------------------------------------------------- strawmen and use
@pytest.mark.parametrize('name', STRAWMEN)
def test_strawmen_repeat_and_give_what_was_asked(cells, name):
    train = cells.take(slice(0, 12))
    a, b, c = (STRAWMEN[name](train, 30, stream(s, name)) for s in (0, 0, 1))
    assert a.soh.shape == (30, 64) and a.cycles.shape == (30,) and np.isfinite(a.soh).all() and (a.cycles > 0).all() and a.end == train.end
    assert (a.soh == b.soh).all() and (a.cycles == b.cycles).all() and ((a.cycles != c.cycles).any() or name == 'mean cell')
    assert np.isfinite(list(scores(cells, a, Space.fit(cells), permutations=9).values())).all()


def test_gaussian_keeps_mean_and_covariance(cells, space):
    z, y = space(cells), space(gaussian(cells, 5000, stream(0, 'many')))
    assert np.abs(z.mean(0) - y.mean(0)).max() < .06 and np.abs(np.cov(z.T) - np.cov(y.T)).max() < .1


def test_cycles_to_a_loss_never_go_backwards(cells):
    wavy = replace(cells, soh=cells.soh + .004*np.sin(40*U))
    at = cycles_to(wavy)
    assert (np.diff(at, axis=1) >= 0).all() and (at <= wavy.cycles[:, None] + 1e-6).all()


def test_life_error_is_in_percent_and_needs_no_unit(cells):
    a, b = cells.take(slice(0, 60)), cells.take(slice(60, 120))
    once = life_error(a, b)
    assert once.shape == (60,) and np.median(once) < 40
    assert np.allclose(life_error(replace(a, cycles=10*a.cycles), replace(b, cycles=10*b.cycles)), once, rtol=.05, atol=.5)


def test_noise_of_real_records_goes_into_windows(fleet):
    some = fleet.take(fleet.ids[:6])
    noise = residuals(some)
    assert len(noise) == 6 and all(abs(np.median(r)) < 1e-3 for r in noise)
    f = fades(fleet)
    a, b, c = (noisy_windows(f, noise, stream(s, 'w')) for s in (0, 0, 1))
    assert (a.ctx == b.ctx).all() and (a.ctx != c.ctx).any() and a.ctx.shape[1:] == a.targ.shape[1:] == (96,)
    silent = noisy_windows(f, [np.zeros(3)], stream(0, 'w'))
    assert silent.ctx.shape == a.ctx.shape and 0 < (a.ctx - silent.ctx).abs().median() < .01
