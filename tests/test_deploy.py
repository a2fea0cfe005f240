"""Firmware: what the chapter should not hold. Every compiler, both code paths, two emulators, broken folders, the sketch as a process."""
import json, os, shutil, subprocess
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st, HealthCheck
from battnb import deploy as D
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


# ---- the sketch as a process ----------------------------------------------------------------------------------------------------

ARDUINO = '''#pragma once
#include <stdint.h>
#include <stdio.h>
struct SerialStub {
  void begin(long) {}
  int available() { int c = getchar(); if (c == EOF) return 0; ungetc(c, stdin); return 1; }
  int read() { return getchar(); }
  void print(const char *s) { fputs(s, stdout); } void print(char c) { putchar(c); }
  void print(int n) { printf("%d", n); } void print(unsigned long n) { printf("%lu", n); }
  template <class T> void println(T x) { print(x); putchar('\\n'); } void println() { putchar('\\n'); }
};
extern SerialStub Serial;
inline unsigned long micros() { return 0; }
'''

@pytest.fixture(scope='module')
def sketch(tmp_path_factory):
    "The sketch, compiled for this machine against a stub of the Arduino core."
    cxx = next((c for c in ('g++', 'clang++') if shutil.which(c)), None)
    if not cxx: pytest.skip('no C++ compiler')
    out = tmp_path_factory.mktemp('sketch')
    ints = D.replace(D.quantize_liquid(liquid()), half=np.arange(96, dtype=np.int16))
    D.generate(ints, out)
    (out/'Arduino.h').write_text(ARDUINO)
    (out/'main.cpp').write_text('#include "Arduino.h"\nSerialStub Serial;\n#include "battery_forecast.ino"\nint main() { setup(); loop(); }\n')
    src = out/'battery_forecast'
    sanitize = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all'] if D._links(cxx, '-fsanitize=address,undefined') else []
    subprocess.run([cxx, '-std=gnu++14', *D.WARNINGS, *sanitize, '-I', src, '-I', out, out/'main.cpp', '-x', 'c++', src/'liquid.c', '-o', out/'sketch'], check=True)
    return lambda data: subprocess.run([out/'sketch'], input=data, capture_output=True, check=True).stdout.decode(), ints

def test_sketch_forecasts_what_the_integers_say(sketch):
    run, ints = sketch
    soh = fades(1, 97)[0]
    lines = run(''.join(f'{v:.6f}\n' for v in soh).encode()).splitlines()
    assert lines[0] == 'held 1 of 96' and lines[94] == 'held 95 of 96'
    got = {l.split()[0]: l.split()[1:] for l in lines[-4:]}
    want = ints(soh[None].round(6))[0]
    assert np.abs(np.array(got['soh'], float) - want).max() < 1e-4
    assert np.abs(np.array(got['high'], float) - want - ints.half/2**13).max() < 1e-4
    below = next((i for i in range(96) if (want[i:] < .8).all()), None)
    assert got['cycles_to_80'] == ['>96' if below is None else str(below + 1)]

def test_sketch_reads_ah(sketch):
    run, ints = sketch
    soh = fades(1)[0]
    ah = run(('nominal 1.1\r\n' + ''.join(f'{1.1*v:.6f}\r\n' for v in soh)).encode()).splitlines()
    assert ah[0] == 'ok, lines are Ah' and np.abs(np.array(ah[-4].split()[1:], float) - ints(soh[None])[0]).max() < 2e-3

def test_sketch_counts_down_to_80(sketch):
    run, _ = sketch
    assert run(b'0.5\n'*96).splitlines()[-1].startswith('cycles_to_80 ')
    assert run(b'test\n').startswith('test differ 0 of 768 ')

@pytest.mark.parametrize('line', ['x', '0', '2', '-1', '.', '1..2', '1.2.3', '97.3', 'nan', '1e-1', '0.9 ', 'nominal', 'nominal x', 'resets', '9'*40, '0'*40, '4001', '99999999999999999999'])
def test_sketch_refuses(sketch, line):
    assert sketch[0](f'{line}\n'.encode()).startswith('error:'), line

def test_sketch_survives_noise(sketch):
    run, g = sketch[0], np.random.default_rng(0)
    words = [b'0.97', b'nominal ', b'reset', b'test', b'\n', b'\r', b'.', b'9', b'\x00', b'\xff', b' ', b'0.8\n', b'1.0001\n']
    for _ in range(20):
        run(b''.join(words[i] for i in g.integers(len(words), size=3000)))
        run(g.integers(0, 256, 5000, dtype=np.uint8).tobytes())
