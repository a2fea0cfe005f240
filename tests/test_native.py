"""C compiled at first use: memory for large arrays, and what is left of it when they are gone."""
import gc, sys
import pytest, torch
from battnb.native import HEAD, library, native, pointers, room

@pytest.mark.parametrize('shape', [(0,), (3, 4), (2**23 + 1,), (5, 2, 2**20)])
def test_room_is_an_array_like_any_other(shape):
    x = room(*shape); x.fill_(3.)
    assert x.shape == shape and x.dtype == torch.float32 and x.is_contiguous() and bool((x == 3).all())
    if x.numel(): y = x.view(-1)[-1:]; del x; gc.collect(); assert y.item() == 3

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_large_arrays_go_back_to_the_system():
    size = lambda: int(open('/proc/self/statm').read().split()[1])*4096
    before = size()
    for _ in range(20): room(2**24).fill_(1.)                               # 64 MB each
    gc.collect(); assert size() - before < 3*2**26

def test_a_machine_without_large_pages_is_served(monkeypatch):
    import mmap
    class Refuses(mmap.mmap):
        def madvise(self, *a): raise OSError('no such pages')
    monkeypatch.setattr('battnb.native.mmap.mmap', Refuses)
    assert room(2**24).fill_(2.)[-1] == 2

@pytest.mark.skipif(not native().startswith('C'), reason=native())
def test_sigmoids_are_right_to_the_last_digits_and_nothing_else_is_compiled():
    lib = library(HEAD + 'void s(const float *x, float *y, num n) { for (num i = 0; i < n; i++) y[i] = one(held(-LOG2E*x[i])); }')[0]
    x = torch.cat([torch.linspace(-120, 120, 100_001), torch.tensor([0., 1e30, -1e30])]); y = torch.empty_like(x)
    lib.s(*pointers(x, y), len(x))
    assert (y.double() - x.double().sigmoid()).abs().max() < 3e-7 and y[-3:].tolist()[:2] == [.5, 1.]

def test_a_text_that_no_compiler_takes_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv('BATTNB_CACHE', str(tmp_path)); monkeypatch.setenv('BATTNB_CC', 'cc')
    lib, why = library('int twice(int x) { return 2*y; } /* in a test */')
    assert lib is None and why.startswith('torch: cc: ')
