"""Liquid layers: exhaustive bounds, gradients, durations, interruption."""
import copy, itertools
import pytest, torch
from hypothesis import given, settings, strategies as st
from battnb.core import InputError, torch_stream
from battnb.forecaster import load_forecaster
from battnb.liquid import CfC, DLNet, DLNetCfg, EulerLTC, FusedLTC, LiquidCfg, LiquidForecaster, check_euler, euler_step, fused_step, line_matrix, unroll
from battnb.training import fit

finite = dict(allow_nan=False, allow_infinity=False)

@settings(max_examples=300, deadline=None)
@given(st.floats(1e-4, 1, **finite), st.floats(1e-3, 1e4, **finite), st.floats(0, 1, **finite), st.floats(-1, 1, **finite), st.floats(-1, 1, **finite))
def test_euler_is_bounded_whenever_the_constructor_accepts(dt, tau_min, f, s, A):
    try: check_euler(dt, tau_min)
    except ValueError: return
    t = lambda v: torch.tensor(v, dtype=torch.float64)
    assert abs(euler_step(t(s), t(f), t(A), t(1/tau_min), dt)) <= 1 + 1e-12

@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1e6, **finite), st.floats(1e-6, 1e6, **finite), st.floats(0, 1, **finite), st.floats(-1, 1, **finite), st.floats(-1, 1, **finite))
def test_fused_is_bounded_for_every_step(dt, tau, f, s, A):
    t = lambda v: torch.tensor(v, dtype=torch.float64)
    assert abs(fused_step(t(s), t(f), t(A), t(1/tau), dt)) <= max(abs(s), abs(A)) + 1e-12

@pytest.mark.parametrize('dt,tau_min,ok', [(.5, 1., True), (.5 + 1e-9, 1., False), (2/3, 2., True), (.99, 99., True), (1., 1e9, False), (-.1, 1., False), (float('nan'), 1., False)])
def test_the_limit_itself(dt, tau_min, ok):
    if ok: check_euler(dt, tau_min); EulerLTC(3, 1, dt=dt, tau_min=tau_min, tau_max=tau_min + 100)
    else:
        with pytest.raises(ValueError, match='explicit Euler needs'): check_euler(dt, tau_min)
        with pytest.raises(ValueError): EulerLTC(3, 1, dt=dt, tau_min=tau_min, tau_max=tau_min + 100)

def test_tau_stays_above_its_floor_after_wild_updates():
    cell, gen = EulerLTC(8, 1, dt=.5), torch_stream(0, 'wild')
    opt = torch.optim.SGD(cell.parameters(), lr=1e3)
    for _ in range(20):
        opt.zero_grad(); unroll(cell, torch.randn(4, 10, 1, generator=gen)).tanh().sum().backward(); opt.step()
        assert torch.isfinite(cell.rate).all() and (cell.rate >= 0).all() and (cell.rate <= 1).all()
        assert torch.isfinite(unroll(cell, torch.randn(4, 10, 1, generator=gen))).all()

@pytest.mark.parametrize('cls,dt', [(FusedLTC, 1.), (FusedLTC, 30.), (EulerLTC, .5)])
def test_scan_equals_loop_in_values_and_gradients(cls, dt):
    gen = torch_stream(1, 'scan')
    cell = cls(5, 2, dt=dt, gen=gen).double()
    u = torch.randn(6, 9, 2, generator=gen, dtype=torch.float64)
    spans = dt*torch.rand(6, 9, generator=gen, dtype=torch.float64)
    grads = []
    for run in ('scan', 'loop'):
        cell.zero_grad()
        if run == 'scan': out = unroll(cell, u, spans)
        else:
            s, states = u.new_zeros(6, 5), []
            for t in range(9): states.append(s := cell(s, u[:, t], spans[:, t:t+1]))
            out = torch.stack(states, 1)
        (out*torch.arange(1., 10)[None, :, None]).square().sum().backward()
        grads.append([out.detach()] + [p.grad.clone() for p in cell.parameters()])
    for a, b in zip(*grads): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('cell', [FusedLTC(4, 1), EulerLTC(4, 1), CfC(4, 1), CfC(4, 1, 'no_gate'), CfC(4, 1, 'pure')], ids=['fused', 'euler', 'cfc', 'no_gate', 'pure'])
def test_timespans_are_per_row_not_broadcast(cell):
    gen = torch_stream(2, 'spans')
    u, spans = torch.randn(4, 4, 1, generator=gen), .5*torch.rand(4, 4, generator=gen)      # batch = steps: the ambiguous case
    both = unroll(cell, u, spans)
    for i in range(4): torch.testing.assert_close(both[i:i+1], unroll(cell, u[i:i+1], spans[i:i+1]))
    assert not torch.allclose(both, unroll(cell, u, spans.T.contiguous()))
    for bad in (spans[:, 0], spans[..., None], spans[:, :3]):
        with pytest.raises(ValueError, match='timespans must have the shape'): unroll(cell, u, bad)
    with pytest.raises(ValueError, match='finite and >= 0'): unroll(cell, u, spans.masked_fill(spans > .2, float('nan')))
    with pytest.raises(ValueError, match='batch, steps, inputs'): unroll(cell, u[0])

def test_streaming_equals_unroll():
    cell, u = FusedLTC(4, 1), torch.randn(2, 7, 1, generator=torch_stream(3, 'stream'))
    whole = unroll(cell, u)
    part = unroll(cell, u[:, 3:], s0=unroll(cell, u[:, :3])[:, -1])
    torch.testing.assert_close(whole[:, 3:], part)

@pytest.mark.parametrize('cell,patch,skip', list(itertools.product(('fused', 'euler'), (1, 4, 96), (True, False))))
def test_every_form_saves_and_loads(tmp_path, cell, patch, skip):
    cfg = LiquidCfg(units=6, cell=cell, patch=patch, skip=skip, dt=.5, seed=5)
    model, ctx = LiquidForecaster(cfg), .9 + .01*torch.randn(3, 96, generator=torch_stream(4, 'ctx'))
    with torch.no_grad(): [p.add_(.1) for p in model.head.parameters()]
    again = load_forecaster(model.save_pretrained(tmp_path))
    assert again.cfg == cfg and torch.equal(again(ctx), model(ctx)) and model(ctx).shape == (3, 96)
    assert model.cell.weight.shape == (6, 6) and model.cell.weight_in.shape == (6, patch) and (model.cell.tau > 0).all()
    assert model.n_params == 36 + 6*patch + 18 + 6*96 + 96 + 96*96*skip

def test_weights_of_another_size_are_refused(tmp_path):
    folder = LiquidForecaster(LiquidCfg(units=4)).save_pretrained(tmp_path)
    (folder/'config.json').write_text((folder/'config.json').read_text().replace('"units": 4', '"units": 5'))
    with pytest.raises(InputError, match='does not fit'): load_forecaster(folder)

def test_defaults_are_pinned():
    assert LiquidCfg() == LiquidCfg(ctx=96, hor=96, units=16, cell='fused', patch=1, gain=16., skip=True, dt=1., tau_min=1., tau_max=None, line=48, seed=0)

def test_clipping_and_long_contexts():
    model = LiquidForecaster()
    wild = torch.full((1, 96), 5.); wild[:, -1] = 1.
    assert model.scaled(wild).abs().max() == 8 and torch.isfinite(model(wild)).all()
    ctx = .9 + .01*torch.randn(2, 200, generator=torch_stream(5, 'long'))
    assert torch.equal(model(ctx), model(ctx[:, -96:]))
    x = torch.linspace(1, .98, 96)[None]
    torch.testing.assert_close(model(x)[0], x[0, -1] + (line_matrix(96, 96, 48) @ (x[0] - x[0, -1])))

def test_training_resumes_to_the_same_weights(tmp_path):
    ctx = .9 + .01*torch.randn(64, 96, generator=torch_stream(6, 'ctx')); targ = ctx.flip(1)
    batches = lambda step: (ctx[(step % 4)*16:][:16], targ[(step % 4)*16:][:16])
    loss = lambda p, y: (p - y).square().mean()
    whole, halves = LiquidForecaster(LiquidCfg(units=4)), LiquidForecaster(LiquidCfg(units=4))
    fit(whole, batches, loss, steps=12, every=6)
    class Killed(Exception): pass
    def dying(step):
        if step == 8: raise Killed
        return batches(step)
    with pytest.raises(Killed): fit(copy.deepcopy(halves), dying, loss, steps=12, every=6, ckpt=tmp_path/'c.pt')
    fit(halves, batches, loss, steps=12, every=6, ckpt=tmp_path/'c.pt')
    for a, b in zip(whole.parameters(), halves.parameters()): assert torch.equal(a, b)

def test_line_matrix_against_least_squares():
    import numpy as np
    x = np.random.default_rng(0).normal(size=96)
    for k in (2, 7, 48, 96):
        slope = np.polyfit(np.arange(k), x[-k:], 1)[0]
        got = line_matrix(96, 5, k) @ torch.tensor(x, dtype=torch.float32)
        np.testing.assert_allclose(got, slope*np.arange(1, 6), rtol=1e-3, atol=1e-5)
    for k in (1, 97):
        with pytest.raises(ValueError, match=f'got {k}'): line_matrix(96, 5, k)

@pytest.mark.parametrize('cfg,count', [({}, 155_749), (dict(units=128, rank=128, steps=1, dt=.05), 172_261), (dict(units=4, rank=4, steps=1, dt=.05), 75_293)])
def test_dlnet_counts_and_round_trip(tmp_path, cfg, count):
    model = DLNet(DLNetCfg(**cfg)).eval(); ctx = .9 + .01*torch.randn(3, 120, generator=torch_stream(7, 'ctx'))
    assert model.n_params == count and torch.equal(load_forecaster(model.save_pretrained(tmp_path))(ctx), model(ctx))
    assert torch.equal(model(ctx), model(ctx[:, -100:]))
