"""The loop over synapses: C against torch in values and gradients, odd shapes, threads, durations of zero, and machines without a compiler."""
import itertools, os, stat
import numpy as np
import pytest, torch
from battnb.core import torch_stream
from battnb.native import library, native
from battnb.synapses import lists_of, scan, sense

NAMES = ('states', 'v0', 'base', 'h', 'gamma', 'shift', 'pull')
in_c = pytest.mark.skipif(not native().startswith('C'), reason=native())

def problem(N, B, T, wide, share=.6, seed=0):
    gen = torch_stream(seed, f'{N} {B} {T} {wide}')
    lists = lists_of((torch.rand(N, N, generator=gen) < share).numpy())
    F, draw = lists['source'].shape[1], lambda *shape: torch.rand(*shape, generator=gen)
    here = torch.arange(F) < lists['count'][:, None]; w = draw(N, F)*here
    return [draw(N, B) - .5, draw(T, N, 2, B), draw(T, N, B if wide else 1), (3 + 5*draw(N, F))*here, 3*draw(N, F)*here, torch.stack([w*torch.where(draw(N, F) < .4, -1., 1.), w], 1)], lists

def run(args, lists, c, dtype=torch.float32, unfolds=6):
    given = [a.to(dtype).detach().requires_grad_() for a in args]
    states = scan(*given, lists, unfolds, in_c=c)
    return [states.detach(), *torch.autograd.grad((states*torch.linspace(-1, 1, states.numel(), dtype=dtype).view_as(states)).sum(), given)]

def close(a, b, most=1e-5):
    for name, x, y in zip(NAMES, a, b): assert x.shape == y.shape and (x - y).abs().max() <= most*y.abs().max().clamp(min=1e-6), f'{name}: {((x - y).abs().max()/y.abs().max()).item():.1e}'

@in_c
@pytest.mark.parametrize('N,B,wide', [(1, 1, False), (3, 127, True), (3, 128, False), (5, 129, True), (17, 300, False)])
@pytest.mark.parametrize('share', [0., .3, 1.])
def test_c_equals_torch_in_double(N, B, wide, share):
    args, lists = problem(N, B, 5, wide, share)
    close(run(args, lists, True), run(args, lists, False, torch.float64))

@in_c
@pytest.mark.parametrize('I,N,B', [(1, 1, 1), (3, 5, 129), (2, 140, 64)])
@pytest.mark.parametrize('share', [0., .5, 1.])
def test_inputs_in_c_equal_torch_in_double(I, N, B, share):
    gen = torch_stream(I, f'{N} {B}'); lists = lists_of((torch.rand(I, N, generator=gen) < share).numpy()); F = lists['source'].shape[1]
    draw, there = lambda *shape: torch.randn(*shape, generator=gen), (torch.arange(F) < lists['count'][:, None])[:, None]
    out, args = [], [draw(4, I, B), draw(N, 2), 20*draw(N, F), draw(N, F), draw(N, 2, F)]
    for dtype in (torch.float32, torch.float64):
        given = [a.to(dtype).requires_grad_() for a in args]; base = sense(*given[:4], given[4]*there, lists, in_c=dtype == torch.float32)
        out.append([base.detach(), *torch.autograd.grad((base*torch.linspace(-1, 1, base.numel(), dtype=dtype).view_as(base)).sum(), given)])
    for a, b in zip(*out): assert (a - b).abs().max() <= 1e-5*b.abs().max().clamp(min=1e-2)

@in_c
def test_threads_share_the_batch_without_changing_it():
    args, lists = problem(6, 700, 4, True); one = run(args, lists, True); before = torch.get_num_threads()
    try: torch.set_num_threads(3); three = run(args, lists, True)
    finally: torch.set_num_threads(before)
    assert torch.equal(one[0], three[0]); close(three, one, 1e-6)

@in_c
@pytest.mark.parametrize('unfolds', [1, 2, 7])
def test_without_gradient_only_the_readings_are_kept(unfolds):
    args, lists = problem(4, 9, 6, False)
    with torch.no_grad(): bare = scan(*args, lists, unfolds, in_c=True)
    torch.testing.assert_close(bare, run(args, lists, True, unfolds=unfolds)[0], rtol=0, atol=0)
    assert bare.untyped_storage().nbytes() == 4*7*4*9

@in_c
def test_steep_synapses_saturate_and_a_missing_number_stays_in_its_row():
    args, lists = problem(3, 6, 4, True, 1.); args[3] = args[3]*1e4
    close(run(args, lists, True)[:1], run(args, lists, False, torch.float64)[:1])
    for far in (1., 1e4):
        args, lists = problem(4, 130, 4, True, 1.); args[3] = args[3]*far; args[1][2, 1, 0, 4] = float('nan')
        for c in (True, False):                                         # sequences that share a vector or a division with it, too
            out = scan(*args, lists, in_c=c); rest = [i for i in range(130) if i != 4]
            assert out[2:, 1, 4].isnan().all() and torch.isfinite(out[..., rest]).all()

@in_c
def test_a_second_backward_and_a_step_of_no_length():
    args, lists = problem(4, 3, 5, False); given = [a.requires_grad_() for a in args]
    loss = scan(*given, lists, in_c=True).square().sum(); loss.backward(retain_graph=True); one = given[3].grad.clone(); loss.backward()
    torch.testing.assert_close(given[3].grad, 2*one)
    args, lists = problem(4, 3, 5, True); args[2].zero_()
    close(run(args, lists, True), run(args, lists, False, torch.float64)); assert torch.equal(scan(*args, lists, in_c=True), args[0].expand(5, 4, 3))

@pytest.fixture
def other(monkeypatch, tmp_path):
    "As if on another machine: nothing compiled, another cache."
    monkeypatch.setenv('BATTNB_CACHE', str(tmp_path/'cache')); library.cache_clear()
    yield monkeypatch
    monkeypatch.undo(); library.cache_clear()

@pytest.mark.parametrize('cc', ['', 'nosuchcompiler', 'false'])
def test_without_a_compiler_torch_serves_and_says_why(other, cc):
    other.setenv('BATTNB_CC', cc)
    args, lists = problem(4, 5, 3, True); got = run(args, lists, None)
    assert native().startswith('torch: ') and (cc or 'no C compiler here') in native()
    close(got, run(args, lists, False, torch.float64))
    with pytest.raises(RuntimeError, match='needs float32 on the processor and a compiler'): scan(*args, lists, in_c=True)

@in_c
def test_the_library_is_kept_and_a_broken_file_is_no_disaster(other, tmp_path):
    assert native().startswith('C'); files = list((tmp_path/'cache'/'native').iterdir()); assert len(files) == 1
    stamp = files[0].stat().st_mtime_ns; library.cache_clear(); assert native().startswith('C') and files[0].stat().st_mtime_ns == stamp
    args, lists = problem(4, 5, 3, True); good = scan(*args, lists)
    other.setenv('BATTNB_CACHE', str(tmp_path/'elsewhere')); (tmp_path/'elsewhere'/'native').mkdir(parents=True)
    for file in (tmp_path/'cache'/'native').iterdir(): (tmp_path/'elsewhere'/'native'/file.name).write_bytes(b'not a library')
    library.cache_clear()
    torch.testing.assert_close(scan(*args, lists), good, rtol=1e-5, atol=1e-6)

def test_a_cache_that_cannot_be_written_is_no_disaster(other, tmp_path):
    if os.geteuid() == 0: (tmp_path/'cache').write_text('a file where a folder should be')
    else: (tmp_path/'cache').mkdir(); (tmp_path/'cache').chmod(stat.S_IRUSR | stat.S_IXUSR)
    args, lists = problem(3, 4, 3, False); assert torch.isfinite(scan(*args, lists)).all() and native()

@pytest.mark.parametrize('matrix', [np.zeros((3, 3)), np.eye(4), np.ones((2, 5))])
def test_lists_hold_every_synapse_once(matrix):
    x = lists_of(matrix); src, dst = np.nonzero(matrix)
    pairs = sorted((int(x['source'][j, k]), j) for j, k in itertools.product(range(matrix.shape[1]), range(x['source'].shape[1])) if k < x['count'][j])
    assert pairs == sorted(zip(src.tolist(), dst.tolist()))
    assert sorted(x['number'][x['number'] < len(src)].tolist()) == list(range(len(src))) and int(x['count'].sum()) == len(src)
