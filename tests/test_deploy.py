"""Firmware: what the chapter should not hold. Every compiler, both code paths, two emulators, broken folders, every kind of student."""
import json, os, shutil
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st, HealthCheck
from battnb import deploy as D, intlayers as L, mixture as M, quantize as Q
from battnb.core import InputError

CI = bool(os.environ.get('CI'))
needs_host = pytest.mark.skipif(not (shutil.which('gcc') or shutil.which('clang')), reason='no host compiler')
needs_qemu = pytest.mark.skipif(not CI and not (shutil.which('qemu-system-arm') and shutil.which('arm-none-eabi-gcc')), reason='QEMU and arm-none-eabi-gcc are not installed')
lazy = settings(max_examples=int(os.environ.get('BATTNB_EXAMPLES', 12)), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def liquid(units=8, ctx=96, hor=96, cell='fused', patch=1, skip=True, gain=16., scale=1., seed=0):
    "A stand-in with the attributes of a liquid forecaster and no torch behind it."
    g = np.random.default_rng(seed)
    dt = 1. if cell == 'fused' else .5
    layer = SimpleNamespace(weight=scale*g.normal(size=(units, units))/units**.5, weight_in=scale*g.normal(size=(units, patch)), bias=g.normal(size=units),
                            tau=np.exp(g.uniform(.05, 5, units)), A=scale*g.normal(size=units), dt=dt, is_fused=cell == 'fused')
    head = SimpleNamespace(weight=g.normal(size=(hor, units))*.2, bias=g.normal(size=hor)*.1)
    return SimpleNamespace(cell=layer, head=head, skip=SimpleNamespace(weight=g.normal(size=(hor, ctx))*.02) if skip else None,
                           cfg=SimpleNamespace(gain=gain, ctx=ctx, hor=hor), context=ctx)


def forward(m, soh):
    "The stand-in in floats."
    last, c = soh[:, -1:], m.cell
    u = np.clip((soh - last)*m.cfg.gain, -8, 8)
    s, p = np.zeros((len(soh), len(c.A))), c.weight_in.shape[1]
    for i in range(0, soh.shape[1], p):
        f = 1/(1 + np.exp(-(s @ c.weight.T + u[:, i:i+p] @ c.weight_in.T + c.bias)))
        s = (s + c.dt*f*c.A)/(1 + c.dt/c.tau + c.dt*f) if c.is_fused else s + c.dt*(f*c.A - (1/c.tau + f)*s)
    y = s @ m.head.weight.T + m.head.bias
    return last + (y if m.skip is None else y + u @ m.skip.weight.T)/m.cfg.gain


def fades(n, ctx=96, seed=1):
    g, t = np.random.default_rng(seed), np.arange(ctx)
    return 1 - g.uniform(0, .2, (n, 1)) - g.uniform(0, 1e-3, (n, 1))*t + g.normal(0, .002, (n, ctx))


def linear(g, rows, cols, scale=1., bias=.1): return SimpleNamespace(weight=scale*g.normal(size=(rows, cols))/cols**.5, bias=bias*g.normal(size=rows))

def cfc(units=5, backbone=7, ctx=24, hor=9, patch=2, mode='default', skip=True, scale=1., seed=0, gain=16.):
    g, m = np.random.default_rng(seed), liquid(units, ctx, hor, 'fused', patch, skip, gain, seed=seed)
    m.cell = SimpleNamespace(mode=mode, inputs=patch, dt=1., backbone=linear(g, backbone, patch + units, scale), heads={k: linear(g, units, backbone, scale) for k in ('ff1', 'ff2', 'time_a', 'time_b')})
    return m

def quantize_cfc(m): return D.quantize_liquid(m, L.quantize_cfc(m.cell, m.cfg.gain*2.**-14, int(min(32767, 8*2**14/m.cfg.gain))))

def forward_cfc(m, soh):
    c, s, p = m.cell, np.zeros((len(soh), len(m.cell.heads['ff1'].bias))), m.cell.inputs
    u = np.clip((soh - soh[:, -1:])*m.cfg.gain, -8, 8)
    for i in range(0, soh.shape[1], p):
        z = 1.7159*np.tanh(.666*(np.concatenate([u[:, i:i+p], s], 1) @ c.backbone.weight.T + c.backbone.bias))
        a, b, ta, tb = (z @ h.weight.T + h.bias for h in c.heads.values())
        g = 1/(1 + np.exp(-(ta*c.dt + tb)))
        s = np.tanh(a)*(1 - g) + np.tanh(b)*g if c.mode == 'default' else np.tanh(a) + g*np.tanh(b)
    y = s @ m.head.weight.T + m.head.bias
    return soh[:, -1:] + (y if m.skip is None else y + u @ m.skip.weight.T)/m.cfg.gain

def dlnet(units=4, steps=2, ctx=25, hor=11, wide=13, seed=0, norm=True):
    from torch import nn
    from battnb.liquid import DLNet, DLNetCfg
    import torch
    m = DLNet(DLNetCfg(ctx=ctx, hor=hor, units=units, steps=steps, dt=.05, rank=2 if seed % 2 else 0, seed=seed)).eval()
    n = nn.LayerNorm if norm else (lambda k: nn.Identity())
    m.encoder = nn.Sequential(nn.Linear(ctx, wide), n(wide), nn.ReLU(), nn.Linear(wide, units), n(units), nn.Tanh())
    m.decoder = nn.Sequential(nn.Linear(units, wide), n(wide), nn.ReLU(), nn.Linear(wide, hor))
    with torch.no_grad():
        for k, p in m.named_parameters():
            if k not in ('a', 'b', 'r'): p.add_(.2*torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return m

def gate(ctx=48, hor=20, width=6, knots=3, seed=0, norm='last', fits=((0, 4), (1, 12), (1, 48), (2, 48))):
    import torch
    from battnb.students import student
    m = student('gate', ctx=ctx, hor=hor, width=width, knots=knots, norm=norm, fits=fits, seed=seed)
    with torch.no_grad():
        for p in m.parameters(): p.add_(.3*torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return m.eval()

KINDS = dict(cfc=lambda s: quantize_cfc(cfc(1 + s % 9, 3 + s % 11, 4*(1 + s % 6), 1 + s % 13, 1 + s % 2 if s % 3 else 4, 'default' if s % 2 else 'no_gate', s % 5 > 1, seed=s)),
             dlnet=lambda s: L.quantize_dlnet(dlnet(2 + s % 9, s % 4, 8 + s % 40, 1 + s % 13, 5 + s % 60, s, s % 3 > 0), fades(30, 8 + s % 40, s)),
             gate=lambda s: M.quantize_gate(gate(48 + s % 49, 2 + s % 40, 3 + s % 30, 2 + s % 5, s, 'window' if s % 2 else 'last'), fades(30, 48 + s % 49, s)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('firmware')
    D.generate(D.quantize_liquid(liquid()), out, {'trained on': 'nothing */ at all'})
    return out


# ---- the arithmetic -------------------------------------------------------------------------------------------------------------

def test_rescale_rounds_half_up_exactly():
    g = np.random.default_rng(0)
    acc = np.concatenate([g.integers(-2**31, 2**31, 3000), [-2**31, 2**31 - 1, 0, -1, 1]])
    mul = np.concatenate([g.integers(0, 2**31, 3000), [2**31 - 1]*5])
    want = [(Fraction(int(a)*int(m), 2**32) + Fraction(1, 2)).__floor__() for a, m in zip(acc, mul)]
    assert D.rescale(acc, mul).tolist() == want
    with pytest.raises(OverflowError, match='2147483648'): D.rescale(np.array([2**31]), np.array([1]))

def test_gate_over_every_input():
    z = np.arange(-2**15, 2**15)
    exact = 2**15/(1 + np.exp(-z/4096))
    assert np.abs(D.lookup(D.gate_table(2**15), z) - exact).max() < 2.2
    rising = np.diff(D.lookup(D.gate_table(65535), z))
    assert rising.min() >= 0

@lazy
@given(st.integers(0, 10**6), st.floats(.01, 4), st.floats(.05, 8))
def test_fused_step_is_the_rounded_mean_and_stays_inside(seed, scale, dt):
    g, m = np.random.default_rng(seed), liquid(5, scale=scale, seed=seed)
    m.cell.dt = dt
    c = D.quantize_cell(m.cell, 16*2.**-14)
    s, z = g.choice([-32768, 32767, 0, *g.integers(-32768, 32768, 5)], (64, 5)), g.integers(-32768, 32768, (64, 5))
    gate = D.lookup(c.gate, z)
    new = c.advance(s, gate)
    exact = [[(Fraction(int(a*c.one + b*p), int(c.one + k + b)) + Fraction(1, 2)).__floor__() for a, b, p, k in zip(*r, c.pull, c.leak)] for r in zip(s, gate)]
    assert np.abs(new - np.array(exact)).max() <= 1 and (new - np.array(exact) != 0).mean() < .05   # D/2 is itself floored
    assert (new <= np.maximum(np.maximum(s, c.pull), 0)).all() and (new >= np.minimum(np.minimum(s, c.pull), 0)).all()

@lazy
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 24), st.integers(1, 6), st.integers(1, 4), st.sampled_from(['fused', 'euler']), st.booleans(), st.floats(.02, 4))
def test_integers_follow_the_floats(seed, units, hor, steps, patch, cell, skip, scale):
    m = liquid(units, steps*patch, hor, cell, patch, skip, scale=scale, seed=seed)
    q, soh = D.quantize_liquid(m), fades(20, steps*patch, seed)
    tally = Counter()
    q.forecast(D.to_int(soh, q.ctx), tally)
    gap = np.abs(q(soh) - forward(m, soh)).max()
    assert gap < .004*(1 + scale) or tally['gate'], (gap, scale)
    q.forecast(D.probe_contexts(q.ctx, 27, seed))                                       # ranges hold at the extremes, or OverflowError

@lazy
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 200), st.floats(1e-6, 30))
def test_the_bound_of_a_layer_holds(seed, rows, cols, scale):
    g = np.random.default_rng(seed)
    layer = D.quantize_dense(scale*g.normal(size=(rows, cols)), scale*g.normal(size=rows), 2.**-14, 2.**-9)
    worst = 32768*np.abs(layer.w.astype(int)).sum(1) + np.abs(layer.b)
    assert worst.max() == layer.bound() < 2**31 and np.abs(layer.w).max() <= 127
    x = np.where(layer.w > 0, 32767, -32768).astype(np.int64)                           # the input that each row likes best
    layer(x)


def test_only_columns_in_time_hand_on_their_rounding():
    m, q = liquid(), D.quantize_liquid(liquid())
    for layer, w in ((q.body.dense, m.cell.weight), (q.head, m.head.weight)):
        row = np.abs(w).max(1, keepdims=True)/127
        assert (np.abs(layer.w).max(1) == 127).all() and np.abs(layer.w - w/row).max() <= .5
    gap = np.cumsum(q.skip.w*np.abs(m.skip.weight).max(1, keepdims=True)/126 - m.skip.weight, 1)
    assert (np.abs(gap) <= .51*np.abs(m.skip.weight).max(1, keepdims=True)/126).all()


# ---- refusals -------------------------------------------------------------------------------------------------------------------

def test_refusals_state_the_bound():
    m = liquid(cell='euler')
    m.cell.dt = .9
    with pytest.raises(InputError, match=r'dt \+ dt/tau <= 1, got 1\.\d+'): D.quantize_liquid(m)
    with pytest.raises(InputError, match='an accumulator could reach .*the limit is 2147483647'): D.quantize_dense(np.ones((1, 517)), np.zeros(1), 2.**-14, 2.**-9)
    with pytest.raises(InputError, match='at most half'): D.quantize_dense(np.full((1, 2), 100.), np.zeros(1), 2.**-14, 2.**-14)
    with pytest.raises(InputError, match='off every affine map by'): D.affine_of(lambda x: x**2, 8)
    with pytest.raises(InputError, match='at most 250'):
        m = liquid()
        m.cell.dt = 300.
        D.quantize_liquid(m)

@pytest.mark.parametrize('bad, text', [(np.full((1, 96), np.nan), 'finite'), (np.full((1, 96), 97.3), 'between -2 and 2'), (np.ones((1, 95)), 'needs 96 cycles')])
def test_unusable_contexts(bad, text):
    with pytest.raises(InputError, match=text): D.quantize_liquid(liquid())(bad)

def test_wrong_shapes_and_types():
    q = D.quantize_liquid(liquid())
    with pytest.raises(ValueError, match=r'\(n, 96\), got \(3, 5\)'): q.forecast(np.zeros((3, 5), np.int16))
    with pytest.raises(OverflowError, match='40000'): q.forecast(np.full((1, 96), 40000))

def test_a_folder_that_was_altered_or_is_none(folder, tmp_path):
    with pytest.raises(InputError, match='lacks one'): D.load_int(tmp_path)
    copy = shutil.copytree(folder, tmp_path/'copy')
    config = json.loads((copy/'model.json').read_text())
    (copy/'model.json').write_text(json.dumps(config | {'clip': 5}))
    with pytest.raises(InputError, match='checksum'): D.load_int(copy)

def test_saved_integers_come_back(folder):
    q, m = D.load_int(folder), D.quantize_liquid(liquid())
    x = D.probe_contexts(96, 20)
    assert (q.forecast(x) == m.forecast(x)).all() and D.fingerprint(q) == D.fingerprint(m)

def test_generation_is_deterministic(folder, tmp_path):
    D.generate(D.quantize_liquid(liquid()), tmp_path, {'trained on': 'nothing */ at all'})
    for p in sorted(folder.rglob('*')):
        if p.is_file(): assert p.read_bytes() == (tmp_path/p.relative_to(folder)).read_bytes(), p.name


# ---- C on this machine ----------------------------------------------------------------------------------------------------------

@needs_host
@pytest.mark.parametrize('opt', ['-O0', '-O1', '-O2', '-O3', '-Os'])
def test_host_at_every_level(folder, opt):
    q, x = D.load_int(folder), D.probe_contexts(96, 300)
    for name, cc in D.host_compilers().items(): assert (D.run_host(folder, x, cc, ('-std=c99', opt)) == q.forecast(x)).all(), name

@needs_host
def test_host_as_cpp(folder):
    q, x = D.load_int(folder), D.probe_contexts(96, 50)
    for name in D.host_compilers(): assert (D.run_host(folder, x, [name], ('-x', 'c++', '-std=gnu++14', '-O2')) == q.forecast(x)).all(), name

@needs_host
@lazy
@given(st.integers(0, 10**6), st.integers(1, 21), st.integers(1, 19), st.integers(1, 9), st.integers(1, 5), st.sampled_from(['fused', 'euler', 'chain', 'affine']), st.booleans(),
       st.floats(.01, 4), st.sampled_from([1., 5., 16., 40.]))
def test_host_on_any_shape(tmp_path_factory, seed, units, hor, steps, patch, kind, flag, scale, gain):
    g, ctx = np.random.default_rng(seed), steps*patch
    if kind == 'affine': q = D.quantize_affine(scale*g.normal(size=(hor, ctx)), g.normal(size=hor)*.1, 'last' if flag else 'one')
    elif kind == 'chain':
        layers = [(scale*g.normal(size=(units, ctx)), g.normal(size=units)), (g.normal(size=(units + 3, units)), g.normal(size=units + 3))]
        q = D.quantize_hidden(layers, (g.normal(size=(hor, units + 3)), g.normal(size=hor)), g.normal(size=(hor, ctx)) if flag else None, gain, fades(30, ctx, seed), .01*patch)
    else: q = D.quantize_liquid(liquid(units, ctx, hor, kind, patch, flag, gain, scale, seed))
    out = tmp_path_factory.mktemp('any')
    D.generate(q, out, wide=flag)
    x = D.probe_contexts(ctx, 90, seed)
    assert (D.run_host(out, x, next(iter(D.host_compilers().values()))) == D.load_int(out).forecast(x)).all()


@needs_host
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(4))
def test_other_kinds_on_any_shape(tmp_path, kind, seed):
    q = KINDS[kind](17*seed + 3*len(kind))
    D.generate(q, tmp_path, wide=bool(seed % 2))
    x, back = D.probe_contexts(q.ctx, 150, seed), D.load_int(tmp_path)
    want = q.forecast(x)
    assert (back.forecast(x) == want).all() and D.fingerprint(back) == D.fingerprint(q)
    for name, cc in D.host_compilers().items(): assert (D.run_host(tmp_path, x, cc, ('-std=c99', ['-O0', '-O2', '-O3'][seed % 3])) == want).all(), name
    if seed == 1:
        for name, cc in D.target_compilers().items():
            for portable in (False, True): assert D.measure(tmp_path, x[:40], cc, portable)['mismatches'] == 0, (name, portable)

def test_other_kinds_follow_the_floats():
    import torch
    for mode in ('default', 'no_gate'):
        for seed in range(8):
            m = cfc(6, 9, 24, 7, 2, mode, seed=seed); soh = fades(30, 24, seed)
            assert np.abs(quantize_cfc(m)(soh) - forward_cfc(m, soh)).max() < 4e-3
    for m, q in ((gate(norm=n, seed=s), M.quantize_gate) for n in ('last', 'window') for s in range(4)):
        soh = fades(60, 48, 3).astype(np.float32)
        with torch.no_grad(): assert np.abs(q(m, soh[:30])(soh[30:]) - m(torch.from_numpy(soh[30:])).numpy()).mean() < 1e-3

def few_bits(kind, s):
    "A student of some shape with weights of four bits, or of three in one part."
    g, ctx, hor = np.random.default_rng(s), 8 + s % 37, 1 + s % 14
    part = [4, dict(hidden=4), dict(head=3, skip=4)][s % 3]
    if kind == 'gate': return M.quantize_gate(gate(48, hor + 1, 3 + s % 30, 2 + s % 5, s, 'window' if s % 2 else 'last'), fades(30, 48, s), Q._bits_of(part))
    if kind == 'dlnet': return L.quantize_dlnet(dlnet(2 + s % 9, s % 4, ctx, hor, 5 + s % 60, s), fades(30, ctx, s), 4)
    if kind == 'affine': return D.quantize_affine(g.normal(size=(hor, ctx)), g.normal(size=hor)*.1, 'last', 4)
    layers = [(g.normal(size=(5 + s % 9, ctx)), g.normal(size=5 + s % 9)), (g.normal(size=(3 + s % 7, 5 + s % 9)), g.normal(size=3 + s % 7))]
    return D.quantize_hidden(layers, (g.normal(size=(hor, 3 + s % 7)), g.normal(size=hor)), g.normal(size=(hor, ctx)) if s % 2 else None, 16., fades(30, ctx, s), .01*(s % 2), Q._bits_of(part))

@needs_host
@pytest.mark.parametrize('kind', ['gate', 'dlnet', 'affine', 'chain'])
def test_weights_of_four_bits_on_any_shape(tmp_path, kind):
    for s in (1, 20, 39):
        q = few_bits(kind, s)
        D.generate(q, tmp_path)
        assert any(f'LIQUID_{p}4' in (tmp_path/'model.h').read_text() for p in ('HIDDEN', 'HEAD', 'SKIP'))
        x = D.probe_contexts(q.ctx, 120, s)
        want = q.forecast(x)
        for name, cc in D.host_compilers().items(): assert (D.run_host(tmp_path, x, cc, ('-std=c99', ['-O0', '-O2', '-O3', '-Os'][s % 4])) == want).all(), (name, s)
        if s == 20:
            for name, cc in D.target_compilers().items():
                for portable in (False, True): assert D.measure(tmp_path, x[:30], cc, portable)['mismatches'] == 0, (name, portable, s)

def test_four_bits_halve_the_flash_and_cost_no_instructions(tmp_path):
    g, said = np.random.default_rng(0), {}
    for bits in (8, 4):
        D.generate(D.quantize_affine(g.normal(size=(96, 96))*.05, np.zeros(96), bits=bits), tmp_path)
        said[bits] = D.measure(tmp_path, D.probe_contexts(96, 4))
    assert said[4]['mismatches'] == 0 and said[4]['flash_bytes'] < said[8]['flash_bytes'] - 4000 and said[4]['instructions'] <= 1.05*said[8]['instructions']
    with pytest.raises(InputError, match='a partial sum could reach'): D.squeeze(np.ones((1, 2200), np.int8))
    with pytest.raises(InputError, match='3 to 8 bits, got 9'): D.quantize_dense(np.ones((1, 2)), np.zeros(1), 2.**-14, 2.**-9, bits=9)

def test_the_short_table_is_the_specification_too(tmp_path):
    m = cfc(6, 9, 24, 7, 2, seed=3)
    q = D.quantize_liquid(m, L.quantize_cfc(m.cell, m.cfg.gain*2.**-14, 8192, short=True))
    D.generate(q, tmp_path)
    x, want = D.probe_contexts(24, 60), q.forecast(D.probe_contexts(24, 60))
    for cc in D.host_compilers().values(): assert (D.run_host(tmp_path, x, cc) == want).all()
    assert all(D.measure(tmp_path, x, cc)['mismatches'] == 0 for cc in D.target_compilers().values()) and 'liquid_tanh[129]' in (tmp_path/'model.h').read_text()

@lazy
@given(st.integers(0, 10**6), st.sampled_from(list(KINDS)))
def test_other_kinds_keep_their_ranges(seed, kind):
    q = KINDS[kind](seed)
    q.forecast(D.probe_contexts(q.ctx, 45, seed))                                       # every range is checked inside, or OverflowError


# ---- emulated boards ------------------------------------------------------------------------------------------------------------

def test_verify_reports_everything(folder):
    r = D.verify(folder, n=16, ctx=fades(4), strict=False)
    assert r['mismatches'] == 0 and r['checked'] >= 1000 and r['forecasts'] == 20
    assert {'instructions', 'flash_bytes', 'ram_bytes', 'stack_bytes', 'ms_low', 'ms_high'} <= set(r)
    assert {(b['target'], b['path']) for b in r['builds']} >= {('host', 'portable'), ('unicorn', 'dsp'), ('unicorn', 'portable')}
    assert 0 < r['ms_low'] < r['ms_high'] and r['stack_bytes'] < 256
    json.dumps(r)

def test_a_wrong_table_is_found(folder, tmp_path):
    bad = shutil.copytree(folder, tmp_path/'bad')
    text = (bad/'model.h').read_text()
    head = text.index('liquid_gate[257] = {')
    (bad/'model.h').write_text(text[:head] + text[head:].replace('    ', '    9', 1))
    assert D.verify(bad, n=8, strict=False)['mismatches'] > 0

def test_missing_tools_are_an_error_when_strict(folder, monkeypatch):
    monkeypatch.setattr(D.shutil, 'which', lambda name: None)
    with pytest.raises(RuntimeError, match="needs .*'gcc', 'qemu'"): D.verify(folder, n=1, strict=True)
    monkeypatch.setenv('CI', 'true')
    with pytest.raises(RuntimeError, match="needs"): D.verify(folder, n=1)

def test_without_system_compilers_the_wheels_suffice(folder, monkeypatch):
    monkeypatch.setattr(D.shutil, 'which', lambda name: None)
    monkeypatch.delenv('CI', raising=False)
    r = D.verify(folder, n=12)
    assert r['mismatches'] == 0 and r['missing'] == ['gcc', 'qemu'] and {b['compiler'] for b in r['builds']} == {'zig', 'clang'}

@pytest.mark.parametrize('opt', ['-O0', '-O1', '-O3', '-Os'])
def test_board_at_every_level(folder, tmp_path, opt):
    q, x = D.load_int(folder), D.probe_contexts(96, 30)
    for name, cc in D.target_compilers().items():
        for defines in ((), ('LIQUID_PORTABLE',)):
            board = D.Board(D.build_board(folder, tmp_path/'b.elf', cc, opt, defines))
            assert (board.forecast(x, q.hor) == q.forecast(x)).all(), (name, opt, defines)

@pytest.mark.parametrize('units, skip, limit', [(8, True, 55_400), (16, True, 102_000), (32, False, 221_200)])
def test_instruction_budget(tmp_path, units, skip, limit):
    "Counts do not depend on the weights; the limits leave ten per cent."
    q = D.quantize_liquid(liquid(units, skip=skip))
    D.generate(q, tmp_path)
    for name, cc in D.target_compilers().items():
        board = D.Board(D.build_board(tmp_path, tmp_path/'b.elf', cc))
        counts = {D.count(board, x, q.hor)['instructions'] for x in D.probe_contexts(96, 4)}
        assert max(counts) <= limit, (name, counts)
        assert max(counts) - min(counts) < 200                                          # only clipping of the context branches
        if not skip: assert board.flash_bytes <= 10_000 and board.ram_bytes <= 1_000

@needs_qemu
@pytest.mark.parametrize('compiler', ['clang', 'gcc'])
def test_qemu_agrees_in_output_and_in_count(folder, tmp_path, compiler):
    q, x, cc = D.load_int(folder), D.probe_contexts(96, 200), D.target_compilers()[compiler]
    got, issued = D.run_qemu(folder, x, cc)
    assert (got == q.forecast(x)).all()
    plain = D.Board(D.build_board(folder, tmp_path/'plain.elf', cc))
    assert D.count(plain, x[0], q.hor)['instructions'] == issued

def test_ten_thousand_forecasts(folder, tmp_path):
    q, x = D.load_int(folder), D.probe_contexts(96, 10_000, seed=7)
    want = q.forecast(x)
    for name, cc in D.host_compilers().items(): assert (D.run_host(folder, x, cc) == want).all(), name
    board = D.Board(D.build_board(folder, tmp_path/'b.elf', next(iter(D.target_compilers().values()))))
    assert (board.forecast(x, q.hor) == want).all()

@pytest.mark.parametrize('name, make, instructions, flash', [
    ('cfc', lambda: quantize_cfc(cfc(16, 24, 96, 96, 1, skip=False)), 315_300, 10_800), ('gate', lambda: M.quantize_gate(gate(96, 96, 32, 4, fits=((0, 4), (1, 12), (1, 24), (1, 48), (1, 72), (1, 96), (2, 48), (2, 72), (2, 96))), fades(30)), 67_800, 13_600),
    ('affine', lambda: D.quantize_affine(np.random.default_rng(0).normal(size=(96, 96))*.05, np.zeros(96)), 15_700, 12_000)])
def test_instruction_budget_of_other_kinds(tmp_path, name, make, instructions, flash):
    D.generate(make(), tmp_path)
    for compiler, cc in D.target_compilers().items():
        r = D.measure(tmp_path, D.probe_contexts(96, 6), cc)
        assert r['mismatches'] == 0 and r['instructions'] <= instructions and r['flash_bytes'] <= flash and r['stack_bytes'] <= 400, (compiler, r)

@pytest.mark.parametrize('hor', [96, 100])
def test_published_dlnet_shape_fits_72_kb(tmp_path, hor):
    "The student that the paper chose: pruned to 233 and 112 units. Instructions leave ten per cent."
    from battnb.liquid import DLNet, DLNetCfg
    q = D.quantize(DLNet(DLNetCfg(ctx=hor, hor=hor, units=4, steps=1, dt=.05, rank=4, decoder=(233, 112))), fades(40, hor))
    assert len(set(q.body.ode.mean.w.ravel().tolist())) == 1                            # the C code sums the context without a table of weights
    D.generate(q, tmp_path)
    for name, cc in D.target_compilers().items():
        r = D.measure(tmp_path, D.probe_contexts(hor, 9), cc)
        assert r['mismatches'] == 0 and r['flash_bytes'] < 72_000 and r['instructions'] <= 142_000 and r['ram_bytes'] <= 1_700, (name, r)

@lazy
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 60), st.floats(1e-3, 20), st.floats(0, 50))
def test_short_rows_say_the_same(seed, rows, cols, scale, bias):
    g = np.random.default_rng(seed)
    w, b = scale*g.normal(size=(rows, cols))*g.uniform(0, 1, (rows, 1))**4, bias*g.normal(size=rows)
    y_scale = 2.**np.ceil(np.log2(max(2*np.abs(w).max()/127, np.abs(b).max()/2**20)*2**-14*4 + 2**-20))
    q = L.quantize_short(w, b, 2.**-14, y_scale)
    low, step, byte, unit = L.short_rows(q)
    assert (low.astype(int)*step == q.b).all() and (byte.astype(int)*unit == q.m).all() and q.bound() < 2**31 and np.abs(q.w).max() <= 127
    x = g.integers(-16384, 16384, (30, cols))
    row = q.m*2.**-32*y_scale/2.**-14
    slack = row/2*np.abs(x).sum(1, keepdims=True)*2.**-14 + row*step/2*2.**-14 + y_scale
    assert (np.abs(q(x)*y_scale - (x @ w.T*2.**-14 + b)) <= 1.001*slack).all()

@needs_qemu
def test_qemu_agrees_about_the_band(tmp_path):
    q = D.replace(D.quantize_liquid(liquid(5, 24, 30, patch=4)), half=np.random.default_rng(0).integers(0, 90, 30).astype(np.int16))
    D.generate(q, tmp_path)
    soh = D.probe_record(24, 150)
    want = D.follow_record(D.load_int(tmp_path), soh)
    for name, cc in D.target_compilers().items(): assert (D._qemu(tmp_path, soh, cc, '-O2', 'BOARD_FOLLOW')[0].reshape(want.shape) == want).all(), name
    (tmp_path/'liquid.c').write_text((tmp_path/'liquid.c').read_text().replace('off * 2048 >', 'off * 1024 >'))
    assert (D._qemu(tmp_path, soh, cc, '-O2', 'BOARD_FOLLOW')[0].reshape(want.shape) != want).any()

@needs_host
@pytest.mark.parametrize('hor, every', [(96, 24), (7, 7), (100, 24), (25, 24)])
def test_the_band_follows_bit_for_bit(tmp_path, hor, every):
    "The whole record: calm, noisy, jumping, hostile; on every compiler with sanitizers, on the board with both paths."
    q = D.replace(D.quantize_liquid(liquid(5, 24, hor, patch=4, skip=False)), half=np.random.default_rng(hor).integers(0, 90, hor).astype(np.int16))
    assert D.rule_of(q).every == every
    D.generate(q, tmp_path)
    soh = D.probe_record(24, 500, hor)
    want = D.follow_record(D.load_int(tmp_path), soh)
    assert len(np.unique(want[:, 1], axis=0)) > 5                                       # the factor did move
    for name, cc in D.host_compilers().items():
        for opt in ('-O0', '-O2'): assert (D._host(tmp_path, soh, cc, ('-std=c99', opt, '-DHOST_FOLLOW')).reshape(want.shape) == want).all(), (name, opt)
    for name, cc in D.target_compilers().items():
        for portable in (False, True):
            r = D.measure_band(tmp_path, cc, portable, seed=hor)
            assert r['mismatches'] == 0 and r['instructions'] < 6_000 and r['ram_bytes'] <= 2*sum(hor - k for k in range(0, hor, every)) + 24, (name, r)

def test_a_wrong_band_is_found(tmp_path):
    q = D.replace(D.quantize_liquid(liquid(5, 24, 30, patch=4)), half=np.full(30, 9, np.int16))
    D.generate(q, tmp_path)
    bad = (tmp_path/'liquid.c').read_text()
    assert bad.count('off * 2048 >') == 1
    (tmp_path/'liquid.c').write_text(bad.replace('off * 2048 >', 'off * 2048 >='))
    same = D.measure_band(tmp_path)['mismatches']
    (tmp_path/'liquid.c').write_text(bad.replace('off * 2048 >', 'off * 1024 >'))
    assert D.measure_band(tmp_path)['mismatches'] > same

def test_what_does_not_fit_does_not_link(tmp_path):
    D.generate(D.quantize_affine(np.eye(8), np.zeros(8)), tmp_path)
    board = tmp_path/'verify'/'board.c'
    board.write_text('extern const char big[983040];\nconst char big[983040] = {1};\n' + board.read_text().replace('return 0;', 'return big[board_ctx[0] & 1];', 1))
    for name, cc in D.target_compilers().items():
        with pytest.raises(RuntimeError, match='FLASH'): D.build_board(tmp_path, tmp_path/'b.elf', cc)

def test_a_write_to_flash_faults(folder, tmp_path):
    import unicorn
    board = D.Board(D.build_board(folder, tmp_path/'b.elf', next(iter(D.target_compilers().values()))))
    with pytest.raises(unicorn.UcError): board.call('liquid_forecast', board.symbols['board_work'], board.symbols['board_ctx'], 0x100)

def test_the_command_reads_as_many_cycles_as_the_model_wants(tmp_path):
    "A student of 100 cycles was refused with the message that its contexts were too short."
    from battnb.liquid import DLNet, DLNetCfg
    from battnb.pipeline import make_firmware
    DLNet(DLNetCfg(units=4, steps=1, dt=.05, rank=4, decoder=(12, 8))).save_pretrained(tmp_path/'dlnet')
    r = make_firmware(tmp_path/'dlnet', tmp_path/'out', checks=11)
    assert r['mismatches'] == 0 and D.load_int(tmp_path/'out').ctx == 100

def test_the_recommended_student_stays_within_its_budget(tmp_path):
    "gate-32 as it ships: ten thousand forecasts, counts with ten per cent of slack, the limits of its purpose."
    from battnb.core import weights_dir
    from battnb.outlook import load_net, models
    assert models().name.iloc[0] == 'gate-32'
    D.generate(Q.quantize(load_net(weights_dir()/'gate-32'), fades(200)), tmp_path)
    q, x = D.load_int(tmp_path), D.probe_contexts(96, 10_000, 11)
    want = q.forecast(x)
    for name, cc in D.host_compilers().items(): assert (D.run_host(tmp_path, x, cc) == want).all(), name
    for name, limit in dict(clang=78_200, gcc=95_900).items():
        if name not in D.target_compilers(): continue
        r = D.measure(tmp_path, x[:200], D.target_compilers()[name])
        assert r['mismatches'] == 0 and r['instructions'] <= min(limit, 120_000) and r['flash_bytes'] <= 16_000 and r['ram_bytes'] <= 1_100 and r['stack_bytes'] <= 400, (name, r)
