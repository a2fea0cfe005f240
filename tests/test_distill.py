"""Distillation: knobs reach the gradient, aligner is trained and saved, cache is honest, a killed run continues."""
import os, signal, subprocess, sys, time
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from battnb.core import torch_stream
from battnb.distill import Committee, Recipe, Stage, cell_mae, distill, states_of, teacher_key, teacher_outputs, two_stage
from battnb.liquid import LiquidCfg, LiquidForecaster
from battnb.students import student
from battnb.feature_terms import TERMS, Aligner, masses, quantile, quantile_truth
from battnb.terms import alpha_beta, blend, horizon_weights, response_kl, response_tilted, truth
from battnb.trend import trend_penalty

GEN = torch_stream(0, 'test')
def draw(*shape): return torch.randn(*shape, generator=GEN, dtype=torch.float64)
def grad(term, s, *args, **kw):
    s = s.clone().requires_grad_()
    return torch.autograd.grad(term(s, *args, **kw), s)[0]
def windows(prefix, n=200, seed=0):
    gen = torch_stream(seed, prefix); t = torch.arange(64.)
    y = 1 - 4e-4*torch.rand(n, 1, generator=gen)*t - 4e-6*torch.rand(n, 1, generator=gen)*t**2 + 1e-3*torch.randn(n, 64, generator=gen)
    return SimpleNamespace(ctx=y[:, :32].contiguous(), targ=y[:, 32:].contiguous(), cell_id=np.array([f'{prefix}{i % 10}' for i in range(n)]))
TRAIN, VALID = windows('a'), windows('b', 60)
def small(seed=0, **cfg): return student('mlp', ctx=32, hor=32, width=16, seed=seed, **cfg)
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))

class Inside(nn.Module):
    "A teacher with hidden states per time step."
    def __init__(self): super().__init__(); self.net = small(9)
    def forward(self, ctx): return self.net(ctx)
    def hidden(self, ctx): return self.net.hidden(ctx)[:, None]*torch.linspace(.5, 1, 4)[:, None]

@pytest.mark.parametrize('alpha,beta', [(.5, .5), (.6, .4), (0, 1), (1, 0), (3, .1)])
def test_blending_identity(alpha, beta):
    s, t, y = draw(3, 32), draw(3, 32), draw(3, 32)
    torch.testing.assert_close(grad(alpha_beta, s, t, y, alpha=alpha, beta=beta), (alpha + beta)*grad(truth, s, None, blend(t, y, alpha=alpha, beta=beta)))

def test_blended_target_trains_to_the_same_student(tmp_path):
    "Not only the gradient: whole trainings agree, teacher and truth against one blended target."
    teacher = small(3)
    blended = SimpleNamespace(ctx=TRAIN.ctx, targ=blend(teacher(TRAIN.ctx).detach(), TRAIN.targ, alpha=.3, beta=.7), cell_id=TRAIN.cell_id)
    a, b = small(1), small(1)
    distill(a, teacher, TRAIN, recipe=Recipe(truth=.3, response=.7), steps=40, cache=tmp_path, clip=1e9)
    distill(b, teacher, blended, recipe=Recipe(truth=1), steps=40, cache=tmp_path, clip=1e9)
    torch.testing.assert_close(a(VALID.ctx), b(VALID.ctx), rtol=0, atol=2e-5)

@pytest.mark.parametrize('name,low,high', [('tilted', dict(tau=.5), dict(tau=4.)), ('kl', dict(temp=1.), dict(temp=5.)), ('frequency', dict(temp=.5), dict(temp=2.)), ('multiscale', dict(scales=1), dict(scales=4)), ('spectrum', dict(eps=1e-3), dict(eps=1.))])
def test_options_reach_the_gradient_through_a_recipe(name, low, high):
    s, t, y, x = (.9 + .01*draw(4, 32) for _ in range(4))
    a, b = (grad(Recipe(**{name: dict(weight=1., **o)}), s, t, y, ctx=x) for o in (low, high))
    assert (a/a.norm() - b/b.norm()).norm() > 1e-3      # another direction, not only another length

def test_alpha_reaches_the_trained_student(tmp_path):
    students = [small(1) for _ in range(3)]
    for m, a in zip(students, (.2, .2, .8)): distill(m, small(3), TRAIN, recipe=Recipe(truth=a, response=1 - a), steps=20, cache=tmp_path)
    assert same(students[0], students[1]) and not same(students[0], students[2])

def test_tau_zero_is_exactly_uniform_and_weights_sum_to_one():
    s, t = draw(3, 32), draw(3, 32)
    assert torch.equal(response_tilted(s, t, tau=0), TERMS['response'](s, t))
    for tau in (-3, 0, .5, 4): assert abs(horizon_weights(32, tau).sum().item() - 1) < 1e-12 and abs(horizon_weights(32, tau)[-1]/horizon_weights(32, tau)[0] - np.exp(tau)) < 1e-9*np.exp(tau)

LEVELS = (.1, .5, .9)
class Banded(nn.Module):
    "A student or teacher with quantiles: its forecast and a learnt half-width either side."
    def __init__(self, seed=0, width=.01): super().__init__(); self.net, self.width = small(seed), nn.Parameter(torch.tensor(width))
    def forward(self, ctx): return self.net(ctx)
    def hidden(self, ctx): return self.net.hidden(ctx)
    def trajectory(self, ctx): return self.net.hidden(ctx).unflatten(1, (4, 4))
    def quantiles(self, ctx): return self(ctx)[..., None] + self.width*torch.tensor([-1., 0, 1])
NEEDS_LEVELS = {'quantile', 'quantile_truth'}
def options(name, weight): return dict(weight=weight, levels=LEVELS) if name in NEEDS_LEVELS else weight

@pytest.mark.parametrize('name', sorted(set(TERMS) - {'truth'}))
def test_zero_weight_is_exactly_neutral(name, tmp_path):
    a, b = Banded(1), Banded(1)
    distill(a, Banded(3), TRAIN, recipe=Recipe(truth=1), steps=8, cache=tmp_path)
    distill(b, Banded(3), TRAIN, recipe=Recipe(truth=1, **{name: options(name, 0)}), steps=8, cache=tmp_path)
    if name in NEEDS_LEVELS: torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=1e-6)   # the median comes through the quantiles
    else: assert same(a, b)

def test_trend_term_is_the_trend_penalty():
    pred = .9 + .01*draw(5, 32)
    torch.testing.assert_close(Recipe(scale=.01, trend=.02)(pred, pred, pred), trend_penalty(pred, lam=.02, scale=.01))

@pytest.mark.parametrize('name', sorted(set(TERMS) - NEEDS_LEVELS))
def test_terms_are_scalars_with_finite_gradients_on_hard_inputs(name):
    flat = torch.full((2, 32), .9); x = torch.full((2, 32), .9)
    kw = dict(ctx=x) if name in ('kl', 'frequency') else dict(hidden=(x, x)) if name == 'relation' else dict(states=(x[..., None], x[..., None])) if name == 'trajectory' else {}
    for s, t in ((flat, flat), (flat, flat + 1e-3), (.9 + .01*torch.rand(2, 32), flat)):
        value = TERMS[name](s, t, flat, **kw); assert value.ndim == 0 and torch.isfinite(value) and value >= -1e-6
        assert torch.isfinite(grad(lambda s: TERMS[name](s, t, flat, **kw) + 0*s.sum(), s)).all()

def test_aligner_moves_is_saved_reloads_and_adds_nothing_to_the_student(tmp_path):
    make = lambda: Aligner(16, 4, 16, rank=8, gen=torch_stream(1, 'a'))
    model, aligner = small(1), make(); before, n = make(), model.n_params
    distill(model, Inside(), TRAIN, VALID, Recipe(truth=1., align=.5, aligner=aligner), steps=40, every=20, cache=tmp_path, ckpt=tmp_path)
    for a, b in zip(aligner.parameters(), before.parameters()): assert (a - b).abs().max() > 1e-4
    assert model.n_params == n and not any('inner' in k and 'profile' in k for k in model.state_dict())
    saved = torch.load(next(tmp_path.glob('stage1*.pt')), weights_only=True)['model']
    assert {'recipe.aligner.inner', 'recipe.aligner.profile', 'recipe.aligner.outer'} <= set(saved)
    again, fresh = small(1), make()
    distill(again, Inside(), TRAIN, VALID, Recipe(truth=1., align=.5, aligner=fresh), steps=40, every=20, cache=tmp_path, ckpt=tmp_path)   # finished: only reloads
    assert same(again, model) and same(fresh, aligner)
    vanilla = small(1); distill(vanilla, Inside(), TRAIN, VALID, Recipe(truth=1.), steps=40, every=20, cache=tmp_path)
    assert not same(vanilla, model)                                            # the term changed the student

def test_relation_reaches_the_student_without_parameters(tmp_path):
    recipe, a, b = Recipe(truth=1., relation=2.), small(1), small(1)
    assert recipe.needs == {'hidden', 'teacher'} and not list(recipe.parameters())
    history = distill(a, Inside(), TRAIN, recipe=recipe, steps=40, every=20, cache=tmp_path)
    distill(b, Inside(), TRAIN, recipe=Recipe(truth=1.), steps=40, every=20, cache=tmp_path)
    assert not same(a, b) and history.table.relation.iloc[-1] < history.table.relation.iloc[0]

def test_identities_hold_for_any_number_of_channels():
    "The horizon is the last axis: terms over (batch, channels, H) equal those over (batch*channels, H)."
    s, t, y, x = (draw(5, 3, 32) for _ in range(4)); flat = lambda v: v.flatten(0, 1)
    for name in ('truth', 'response', 'kl', 'tilted', 'slope', 'multiscale', 'cosine', 'spectrum', 'frequency', 'trend'):
        kw = (dict(ctx=x), dict(ctx=flat(x))) if name in ('kl', 'frequency') else ({}, {})
        torch.testing.assert_close(TERMS[name](s, t, y, **kw[0]), TERMS[name](flat(s), flat(t), flat(y), **kw[1]))

@pytest.mark.parametrize('shift', [-.1, 1e-3, 7.])
def test_kl_is_blind_to_level_and_sees_shape(shift):
    s, t, x = (.9 + .01*draw(4, 32) for _ in range(3))
    for c in (None, x):
        torch.testing.assert_close(response_kl(s + shift, t, ctx=c), response_kl(s, t, ctx=c))
        assert (grad(response_kl, s, t, ctx=c).sum(1).abs() < 1e-9).all()       # no push along the level
        assert response_kl(s.flip(1), t, ctx=c) != response_kl(s, t, ctx=c)

def test_trajectory_reaches_a_liquid_student_from_a_wider_liquid_teacher(tmp_path):
    pupil, master = (LiquidForecaster(LiquidCfg(ctx=32, hor=32, units=u, patch=p, skip=False, line=0, gain=128., seed=u)) for u, p in ((4, 4), (9, 2)))
    assert states_of(pupil, TRAIN.ctx).shape == (200, 8, 4) and states_of(master, TRAIN.ctx).shape == (200, 16, 9)
    start = pupil.cell.weight.clone()
    history = distill(pupil, master, TRAIN, recipe=Recipe(truth=1., trajectory=10.), steps=60, every=30, lr=2e-2, cache=tmp_path)
    assert history.table.trajectory.iloc[-1] < .9*history.table.trajectory.iloc[0] and not torch.equal(start, pupil.cell.weight)

def test_quantiles_are_handed_over(tmp_path):
    pupil, master = Banded(1, .001), Banded(3, .02)
    assert Recipe(quantile=dict(weight=1., levels=LEVELS)).needs == {'quantiles', 'teacher'}
    distill(pupil, master, TRAIN, recipe=Recipe(quantile=dict(weight=1., levels=LEVELS)), steps=250, lr=1e-2, cache=tmp_path)
    assert abs(pupil.width.item() - .02) < .004 and (pupil(TRAIN.ctx) - master(TRAIN.ctx)).abs().mean() < .01
    point = Banded(1, .001); distill(point, master, TRAIN, recipe=Recipe(response=1.), steps=50, lr=1e-2, cache=tmp_path)
    assert point.width.item() == pytest.approx(.001)                          # point distillation says nothing of the width

def test_quantile_term_rests_on_each_teacher_quantile_and_masses_sum_to_one():
    for levels in ((.5,), (.1, .9), (.025, .1, .25, .5, .75, .9, .975)):
        assert abs(masses(levels).sum().item() - 1) < 1e-12
        t = draw(3, 5, len(levels)).sort(-1).values
        for j in range(len(levels)):
            here = quantile(t, t, levels=levels)
            for step in (-1e-3, 1e-3):
                moved = t.clone(); moved[..., j] += step; assert quantile(moved, t, levels=levels) >= here
    y, s = draw(3, 5), draw(3, 5, 3)
    torch.testing.assert_close(quantile(s, y[..., None], levels=LEVELS, teacher_levels=(.5,)), quantile_truth(s, None, y, levels=LEVELS))

def test_vanilla_needs_no_teacher_and_can_be_kept(tmp_path):
    model = small(1); distill(model, None, TRAIN, recipe=Recipe(truth=1), steps=10)
    far = SimpleNamespace(ctx=VALID.ctx, targ=VALID.targ + 50, cell_id=VALID.cell_id)   # nothing trained on TRAIN gets nearer to this
    near = small(1)
    with torch.no_grad(): near.out.bias += 100.
    for keep, undone in ((True, True), (False, False)):
        m = small(1); m.load_state_dict(near.state_dict())
        distill(m, None, TRAIN, far, Recipe(truth=1), steps=10, every=5, keep_start=keep)
        assert same(m, near) is undone

def test_another_score_stops_on_it(tmp_path):
    calls = []
    def mse(model, windows): calls.append(1); return (model(windows.ctx) - windows.targ).square().mean().item()
    h = distill(small(1), None, TRAIN, VALID, Recipe(truth=1), steps=20, every=10, score=mse)
    assert len(calls) == 3 and h.best == min(h.table.valid) or h.best <= min(h.table.valid)

def test_committee_is_cached_and_distilled(tmp_path):
    committee = Committee([small(3), small(4)])
    distill(small(1), committee, TRAIN, recipe=Recipe(response=1), steps=4, cache=tmp_path)
    assert len(list(tmp_path.glob('*.npy'))) == 1
    with torch.no_grad(): committee.members[1].out.bias += 1e-3
    distill(small(1), committee, TRAIN, recipe=Recipe(response=1), steps=4, cache=tmp_path)
    assert len(list(tmp_path.glob('*.npy'))) == 2

def test_aligner_reaches_a_liquid_student(tmp_path):
    model = LiquidForecaster(LiquidCfg(ctx=32, hor=32, units=4, patch=4, skip=False, line=0)); start = model.cell.weight.clone()
    history = distill(model, Inside(), TRAIN, recipe=Recipe(truth=1., align=1., aligner=Aligner(4, 4, 16, rank=4)), steps=30, every=15, cache=tmp_path)
    assert history.table['align'].iloc[-1] < history.table['align'].iloc[0] and not torch.equal(start, model.cell.weight)

def test_cache_is_reused_and_invalidated(tmp_path):
    teacher, ctx = small(3), TRAIN.ctx
    class Counting(type(teacher)):
        calls = 0
        def forward(self, x): Counting.calls += 1; return super().forward(x)
    counting = Counting(teacher.cfg)
    first = teacher_outputs(counting, ctx, cache=tmp_path); n = Counting.calls
    assert torch.equal(teacher_outputs(counting, ctx, cache=tmp_path), first) and Counting.calls == n
    key = teacher_key(counting, ctx)
    with torch.no_grad(): counting.out.bias[3] += 1e-6
    assert teacher_key(counting, ctx) != key
    changed = teacher_outputs(counting, ctx, cache=tmp_path); assert Counting.calls == n + 1 and not torch.equal(changed, first)
    assert teacher_key(counting, ctx[:-1]) != teacher_key(counting, ctx) != teacher_key(counting, ctx, 'hidden')
    assert teacher_key(small(3), ctx) != teacher_key(small(3, skip=True), ctx)
    assert not list(tmp_path.glob('.*'))                                       # no temporary file is left

def test_teacher_is_left_as_it_was(tmp_path):
    teacher = student('itransformer', ctx=32, hor=32).train(); before = {k: v.clone() for k, v in teacher.state_dict().items()}
    a = teacher_outputs(teacher, TRAIN.ctx, cache=tmp_path/'1'); b = teacher_outputs(teacher, TRAIN.ctx, cache=tmp_path/'2')
    assert torch.equal(a, b) and teacher.training                              # dropout off while asked, mode given back
    distill(small(), teacher, TRAIN, recipe=Recipe(response=1), steps=5, cache=tmp_path/'1')
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()) and all(p.grad is None for p in teacher.parameters())

def test_schedule_slides_from_teacher_to_truth(tmp_path):
    stages = two_stage(80, start=0., end=1., share=0)
    teacher = lambda ctx: torch.full((len(ctx), 32), .5)
    seen = []
    original = stages[0].recipe.forward
    def spy(*args, at, **kw): seen.append(stages[0].recipe.weights(at)); return original(*args, at=at, **kw)
    stages[0].recipe.forward = spy
    distill(small(1), teacher, TRAIN, recipe=stages)
    assert seen[0] == dict(truth=0., response=1.) and seen[-1] == dict(truth=1., response=0.) and len(seen) == 80
    assert all(abs(w['truth'] + w['response'] - 1) < 1e-9 for w in seen)
    assert [s.steps for s in two_stage(80)] == [80, 8]

def test_second_stage_prunes_and_is_kept_only_if_better(tmp_path):
    pruned = []
    def prune(m):
        with torch.no_grad(): m.layers[0].weight[:4] = 0
        pruned.append(True)
    distill(small(1), small(3), TRAIN, VALID, two_stage(20), between=prune, cache=tmp_path, every=10); assert pruned == [True]
    worse = [Stage(Recipe(truth=1), 60, 3e-3), Stage(Recipe(response=1), 20, 1e-1)]
    model = small(1); history = distill(model, lambda c: torch.zeros(len(c), 32), TRAIN, VALID, worse, every=10)
    assert abs(cell_mae(model, VALID) - history.best) < 1e-7 and history.best == min(r['valid'] for r in history.rows)

def test_a_good_start_is_not_trained_away(tmp_path):
    t = torch.arange(64.); y = (1 - torch.linspace(1e-4, 6e-4, 50)[:, None]*t)
    line = lambda p: SimpleNamespace(ctx=y[:, :32], targ=y[:, 32:], cell_id=np.array([f'{p}{i}' for i in range(50)]))
    model = LiquidForecaster(LiquidCfg(ctx=32, hor=32, units=4, line=32))      # straight lines: the start is perfect
    distill(model, lambda c: torch.zeros(len(c), 32), line('a'), line('b'), Recipe(response=1), steps=20, every=10)
    assert cell_mae(model, line('b')) < 1e-5

def test_validation_counts_cells_not_windows():
    lopsided = SimpleNamespace(ctx=torch.ones(10, 32), targ=torch.cat([torch.ones(9, 32), torch.full((1, 32), .9)]), cell_id=np.array(['big']*9 + ['small']))
    model = LiquidForecaster(LiquidCfg(ctx=32, hor=32, units=2))
    assert abs(cell_mae(model, lopsided) - .05) < 1e-6

def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="10 are shared, first 'a0'"): distill(small(), small(3), TRAIN, TRAIN, cache=tmp_path)
    with pytest.raises(ValueError, match=r'at least \(200, 32\) values, got \(200, 8\)'): distill(small(), torch.ones(200, 8), TRAIN)
    with pytest.raises(ValueError, match='looks at a teacher, but there is none'): distill(small(), None, TRAIN)
    with pytest.raises(ValueError, match='show their states; MLP'): distill(small(), small(3), TRAIN, recipe=Recipe(trajectory=1.), cache=tmp_path)
    with pytest.raises(ValueError, match='come together'): Recipe(align=1.)
    with pytest.raises(ValueError, match="unknown term 'mse'"): Recipe(mse=1.)
    with pytest.raises(ValueError, match='finite and >= 0, got nan'): Recipe(truth=float('nan'))
    with pytest.raises(ValueError, match='got 0'): Recipe(truth=1, kl=dict(weight=1, temp=0))(draw(1, 4), draw(1, 4), draw(1, 4))
    with pytest.raises(FloatingPointError): distill(small(), torch.full((200, 32), float('nan')), TRAIN, recipe=Recipe(response=1), steps=3)

def test_another_recipe_or_teacher_does_not_resume(tmp_path):
    for alpha, seed in ((.5, 3), (.6, 3), (.5, 4)): distill(small(), small(seed), TRAIN, recipe=Recipe(truth=alpha, response=1 - alpha), steps=4, cache=tmp_path, ckpt=tmp_path)
    assert len(list(tmp_path.glob('stage1-*.pt'))) == 3

SCRIPT = """
import sys, time, torch; sys.path.insert(0, {here!r})
from test_distill import *
model = small(1); whole = type(model).forward
def slow(self, x):
    if self.training: time.sleep(.02)
    return whole(self, x)
type(model).forward = slow
run(model, {ckpt!r})
"""
def run(model, ckpt): distill(model, torch.full((200, 32), .9), TRAIN, VALID, two_stage(100), every=10, ckpt=ckpt)

def test_killed_run_continues_to_the_same_student(tmp_path):
    victim = subprocess.Popen([sys.executable, '-c', SCRIPT.format(here=os.path.dirname(__file__), ckpt=str(tmp_path))])
    deadline = time.time() + 60
    while not list(tmp_path.glob('stage1*.pt')) and time.time() < deadline: time.sleep(.02)
    victim.send_signal(signal.SIGKILL); assert victim.wait() == -signal.SIGKILL
    saved = torch.load(next(tmp_path.glob('stage1*.pt')), weights_only=True); assert 0 < saved['step'] < 100
    resumed, whole = small(1), small(1)
    run(resumed, tmp_path); run(whole, None)
    assert same(resumed, whole)

# ---------------------------------------------------------------- sweeps on several processes
def sweep_job(recipe, seed, folder):
    import torch; torch.set_num_threads(1)
    model = small(seed); distill(model, small(9), TRAIN, VALID, Recipe(**recipe), steps=12, every=6, seed=seed, cache=f'{folder}/teachers', ckpt=folder)
    return recipe, seed, cell_mae(model, VALID), os.getpid()

def test_a_sweep_on_two_dask_workers_equals_one_process(tmp_path):
    "The loop of the studies: joblib's Parallel, here and through dask; teacher's answers and checkpoints are shared on disk."
    cloudpickle, distributed = pytest.importorskip('cloudpickle'), pytest.importorskip('distributed')
    from joblib import Parallel, delayed, parallel_config
    tasks = [(r, s) for r in (dict(truth=1.), dict(truth=.5, response=.5)) for s in range(4)]
    here = [sweep_job(*t, str(tmp_path/'one')) for t in tasks]
    cloudpickle.register_pickle_by_value(sys.modules[__name__])                # the workers cannot import a test file
    try:
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster), parallel_config(backend='dask'):
            there = Parallel()(delayed(sweep_job)(*t, str(tmp_path/'two')) for t in tasks)
    finally: cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert len({pid for *_, pid in there}) == 2 and os.getpid() not in {pid for *_, pid in there}
    assert [t[:2] for t in there] == [t[:2] for t in here]
    np.testing.assert_allclose([t[2] for t in there], [t[2] for t in here], rtol=1e-5)
    assert len(list((tmp_path/'two'/'teachers').glob('*.npy'))) == 1 and not list((tmp_path/'two').rglob('.*'))   # one file of answers, nothing half-written
