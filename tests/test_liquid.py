"""Liquid layers and networks: exhaustive bounds, gradients, durations, interruption, weights of the reference library, streaming."""
import copy, itertools
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from battnb.closed import CfC
from battnb.core import InputError, torch_stream
from battnb.forecaster import load_forecaster
from battnb.layers import EulerLTC, FusedLTC, check_euler, euler_step, fused_step, unroll
from battnb.liquid import DLNet, DLNetCfg, LiquidCfg, LiquidForecaster, line_matrix
from battnb.ltc import LTC, Wiring, auto_ncp, dense_wiring, from_ncps, random_wiring
from battnb.native import native
from battnb.recurrent import CELLS, RecurrentCfg, RecurrentForecaster
from battnb.stream import Stream, StreamCfg, fill, lose
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

# ---- closed-form scan, synaptic networks, wirings ------------------------------------------------------------------
@pytest.mark.parametrize('mode,spans', list(itertools.product(('default', 'no_gate'), (False, True))))
def test_closed_scan_equals_loop_in_values_and_gradients(mode, spans):
    gen = torch_stream(8, mode)
    cell = CfC(6, 2, mode, backbone=7, gen=gen).double()
    u = torch.randn(5, 8, 2, generator=gen, dtype=torch.float64, requires_grad=True)
    dt = torch.rand(5, 8, generator=gen, dtype=torch.float64) if spans else None
    out = []
    for run in ('scan', 'loop'):
        cell.zero_grad(); u.grad = None
        if run == 'scan': states = unroll(cell, u, dt)
        else:
            s, states = u.new_zeros(5, 6), []
            for t in range(8): states.append(s := cell(s, u[:, t], 1. if dt is None else dt[:, t:t+1]))
            states = torch.stack(states, 1)
        (states*torch.arange(1., 9)[None, :, None]).square().sum().backward()
        out.append([states.detach(), u.grad.clone()] + [p.grad.clone() for p in cell.parameters()])
    for a, b in zip(*out): torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    with torch.no_grad(): torch.testing.assert_close(unroll(cell, u, dt), out[0][0])       # the path that keeps nothing

@pytest.mark.skipif(not native().startswith('C'), reason=native())
@pytest.mark.parametrize('mode,spans,units,backbone,B', [('default', False, 1, 1, 1), ('default', True, 5, 9, 130), ('no_gate', False, 6, 8, 33), ('no_gate', True, 3, 7, 2)])
def test_closed_scan_in_c_equals_torch_in_double(mode, spans, units, backbone, B):
    gen = torch_stream(10, f'{mode} {B}'); cell, u = CfC(units, 2, mode, backbone, gen=gen), 3*torch.randn(B, 7, 2, generator=gen)
    dt, s0, out = (torch.rand(7, B, 1, generator=gen) if spans else torch.full((7, 1, 1), .8)), torch.rand(B, units, generator=gen), []
    for dtype in (torch.float32, torch.float64):
        same = copy.deepcopy(cell).to(dtype); given = [u.to(dtype, copy=True).requires_grad_(), s0.to(dtype, copy=True).requires_grad_()]
        states = same.scan(given[0], dt.to(dtype), given[1], in_c=dtype == torch.float32)
        out.append([states.detach(), *torch.autograd.grad((states*torch.linspace(-1, 1, states.numel(), dtype=dtype).view_as(states)).sum(), [*given, *same.parameters()])])
    for a, b in zip(*out): assert (a - b).abs().max() <= 2e-5*b.abs().max().clamp(min=1e-2)

def test_a_cfc_without_a_compiler_gives_the_same(monkeypatch):
    cell, u = CfC(6, 1, backbone=9), torch.randn(33, 5, 1, generator=torch_stream(12, 'u'))
    def both():
        cell.zero_grad(); out = unroll(cell, u); out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in cell.parameters())]
    usual = both(); monkeypatch.setattr('battnb.closed.native', lambda: 'torch: as asked')
    for a, b in zip(usual, both()): assert (a - b).abs().max() <= 2e-5*b.abs().max().clamp(min=1e-2)
    with pytest.raises(RuntimeError, match='as asked'): cell.scan(u, torch.ones(5, 1, 1), torch.zeros(33, 6), in_c=True)

def test_a_missing_reading_of_a_cfc_stays_in_its_row():
    cell, u = CfC(6, 1, backbone=9), torch.randn(40, 5, 1, generator=torch_stream(11, 'u')); u[17, 2] = float('nan')
    out = unroll(cell, u)
    assert out[17, 2:].isnan().all() and torch.isfinite(out[17, :2]).all() and torch.isfinite(out[[i for i in range(40) if i != 17]]).all()

def test_closed_scan_survives_a_second_backward():
    cell, u = CfC(4, 1, backbone=5), torch.randn(3, 6, 1, generator=torch_stream(9, 'u'))
    loss = unroll(cell, u).square().sum()
    loss.backward(retain_graph=True); one = cell.backbone.weight.grad.clone()
    loss.backward(); torch.testing.assert_close(cell.backbone.weight.grad, 2*one)

@pytest.mark.parametrize('wiring', [dense_wiring(7, 2), random_wiring(9, 2, sparsity=.7), auto_ncp(12, 3, 2), auto_ncp(12, 3, 2, .9), Wiring(np.zeros((3, 3)), np.array([[1, 0, 0], [0, -1, 0]]), 2)], ids=['dense', 'random', 'ncp', 'sparse ncp', 'no inner synapse'])
def test_synaptic_network_equals_masked_form(wiring):
    gen = torch_stream(10, 'ltc'); cell = LTC(wiring, gen=gen).double()
    u, spans = torch.rand(4, 6, 2, generator=gen, dtype=torch.float64), 3*torch.rand(4, 6, generator=gen, dtype=torch.float64)
    soft = torch.nn.functional.softplus
    def full(name, x):
        m = torch.tensor(np.asarray(wiring.inner if name == '' else wiring.sensory)); out = torch.zeros(m.shape, dtype=torch.float64); out[m != 0] = x; return out
    def flow(name, v):
        raw, g, m, e = (getattr(cell, name + k) for k in ('raw_w', 'gamma', 'mu', 'erev'))
        sigma = full(name, soft(raw))*torch.sigmoid(full(name, g)*(v[..., None] - full(name, m)))
        return (sigma*full(name, e)).sum(1), sigma.sum(1)
    v, leak, out = torch.zeros(4, wiring.units, dtype=torch.float64), soft(cell.raw_gleak), []
    for t in range(6):
        sn, sd = flow('sensory_', u[:, t]*cell.input_w + cell.input_b); h = spans[:, t:t+1]/6/soft(cell.raw_cm)
        for _ in range(6):
            n, d = flow('', v); v = (v + h*(leak*cell.vleak + n + sn))/(1 + h*(leak + d + sd))
        out.append(v)
    slow = torch.stack(out, 1); names, params = zip(*[(k, p) for k, p in cell.named_parameters() if 'output' not in k])
    want = torch.autograd.grad((slow*torch.arange(1., 7)[None, :, None]).square().sum(), params, allow_unused=True)
    fast = cell(u, spans); torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    got = torch.autograd.grad((fast*torch.arange(1., 7)[None, :, None]).square().sum(), params, allow_unused=True)
    for k, a, b in zip(names, got, want): torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-7, atol=1e-9, msg=k)

def test_synaptic_network_is_positive_after_wild_updates():
    cell = LTC(dense_wiring(5)); opt, gen = torch.optim.SGD(cell.parameters(), lr=300.), torch_stream(11, 'wild')
    for _ in range(15):
        opt.zero_grad(); cell(torch.randn(4, 7, 1, generator=gen)).square().sum().backward(); opt.step()
        out = cell(torch.randn(4, 7, 1, generator=gen))
        assert torch.isfinite(out).all() and out.abs().max() <= max(cell.erev.abs().max(), cell.sensory_erev.abs().max(), cell.vleak.abs().max()) + 1e-4

def test_synaptic_timespans_belong_to_their_rows():
    cell, gen = LTC(dense_wiring(4)), torch_stream(12, 'rows')
    u, spans = torch.rand(3, 3, 1, generator=gen), 2*torch.rand(3, 3, generator=gen)
    both = cell(u, spans)
    for i in range(3): torch.testing.assert_close(both[i:i+1], cell(u[i:i+1], spans[i:i+1]), rtol=1e-5, atol=1e-6)
    for bad in (spans[:, 0], spans[..., None], spans.T[:2]):
        with pytest.raises(ValueError, match='timespans must have the shape'): cell(u, bad)
    part = cell(u[:, 1:], spans[:, 1:], cell(u[:, :1], spans[:, :1])[:, -1]); torch.testing.assert_close(part, both[:, 1:])

@pytest.mark.parametrize('units,outputs,sparsity', list(itertools.product((8, 20, 64), (1, 4), (.1, .5, .9))))
def test_auto_ncp_leaves_nobody_out(units, outputs, sparsity):
    w = auto_ncp(units, outputs, 3, sparsity); command = max(int(.4*(units - outputs)), 1)
    a, s = np.abs(w.inner), np.abs(w.sensory)
    assert a[:, :outputs + command].any(0).all() and s[:, outputs + command:].any(0).all() and not a[:, outputs + command:].any() and not a[:outputs].any() and not s[:, :outputs + command].any()
    assert np.array_equal(w.inner, auto_ncp(units, outputs, 3, sparsity).inner) and (units < 20 or not np.array_equal(w.inner, auto_ncp(units, outputs, 3, sparsity, seed=1).inner))

@pytest.mark.parametrize('kind', ['ltc', 'ltc clamped', 'auto ncp', 'cfc', 'cfc no_gate', 'cfc pure'])
def test_weights_of_ncps_give_the_same_numbers(kind):
    ncps = pytest.importorskip('ncps.torch'); wirings = pytest.importorskip('ncps.wirings')
    torch.manual_seed(3)
    theirs = {'ltc': lambda: ncps.LTC(2, wirings.FullyConnected(12, 3)), 'ltc clamped': lambda: ncps.LTC(2, wirings.FullyConnected(12, 3), implicit_param_constraints=False), 'auto ncp': lambda: ncps.LTC(2, wirings.AutoNCP(20, 3)),
              'cfc': lambda: ncps.CfC(2, 12), 'cfc no_gate': lambda: ncps.CfC(2, 12, mode='no_gate'), 'cfc pure': lambda: ncps.CfC(2, 12, mode='pure')}[kind]()
    ours = from_ncps(theirs.state_dict(), softplus=kind != 'ltc clamped')
    if kind == 'cfc no_gate': ours.mode = 'no_gate'
    u = torch.randn(4, 96, 2, generator=torch_stream(13, 'u'))
    want, _ = theirs(u); got = ours.read(ours(u)) if isinstance(ours, LTC) else unroll(ours, u)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    (g1,), (g2,) = (torch.autograd.grad(x.square().mean(), [p]) for x, p in ((want, theirs.rnn_cell.ff1.weight if 'cfc' in kind else theirs.rnn_cell.vleak), (got, ours.heads['ff1'].weight if 'cfc' in kind else ours.vleak)))
    torch.testing.assert_close(g1, g2, rtol=1e-3, atol=1e-6)

# ---- forecasters ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('cell', CELLS)
def test_every_cell_trains_saves_and_loads(tmp_path, cell):
    model = RecurrentForecaster(RecurrentCfg(ctx=24, hor=10, cell=cell, units=9, patch=4, rank=2)); ctx = .9 + .01*torch.randn(5, 30, generator=torch_stream(14, cell))
    before = model(ctx).detach()
    fit(model, lambda step: (ctx, ctx[:, :10]), lambda p, y: 100*(p - y).abs().mean(), steps=8, lr=1e-2)
    assert torch.isfinite(model(ctx)).all() and not torch.allclose(model(ctx), before)
    assert torch.equal(load_forecaster(model.save_pretrained(tmp_path))(ctx), model(ctx))

def test_stream_over_thousands_of_cycles_does_not_drift():
    model = Stream(StreamCfg()); gen = torch_stream(15, 'long')
    with torch.no_grad(): model.out.weight.normal_(0, .3, generator=gen)
    x = 1 - 1e-4*torch.arange(1800.) + 1e-3*torch.randn(1800, generator=gen)
    memory = model.start()
    for v in x: memory = model.read(memory, v[None])
    torch.testing.assert_close(model.forecast(memory), model(x[None, -1200:]).detach(), rtol=0, atol=5e-5)

def test_stream_pins_and_refusals():
    assert StreamCfg() == StreamCfg(ctx=96, hor=96, memories=(3., 6., 12., 24., 48., 96.), units=12, width=32, knots=4, gain=64., seed=0)
    assert Stream().n_params == 12 + (144 + 24 + 36) + (48*32 + 32) + (32*32 + 32) + (32*60 + 60)
    with pytest.raises(ValueError, match='memories must be > 0'): StreamCfg(memories=(3., 0.))

def test_stream_is_the_same_for_any_padding_of_missing_rows():
    model, gen = Stream(), torch_stream(16, 'pad')
    x, have = .9 + .01*torch.randn(4, 60, generator=gen), lose((4, 60), .6, gen)
    junk = torch.where(have > 0, x, torch.full_like(x, 7.))
    torch.testing.assert_close(model(x, present=have), model(junk, present=have), rtol=0, atol=1e-6)
    assert torch.equal(fill(x, have), fill(junk, have))
