"Chapter 64: what its page does not hold."
import numpy as np, pytest, torch
from battnb.core import InputError, torch_stream
from battnb.deploy import quantize
from battnb.forecaster import load_forecaster
from battnb.quick import CornerGate, fold
from battnb.students import GateCfg, student

GEN = torch_stream(0, 'test quick')
CTX = .9 - 2e-4*torch.arange(96.) + 2e-3*torch.randn(40, 96, generator=GEN)

def rough(cfg, seed=0):
    model, gen = CornerGate(cfg), torch_stream(seed, 'weights')
    with torch.no_grad():
        for p in model.parameters(): p.copy_(.3*torch.randn(p.shape, generator=gen))
    return model.eval()

@pytest.mark.parametrize('fits', [((0, 4),), ((1, 8), (0, 2)), ((2, 96), (1, 12), (0, 1), (3, 40))])
@pytest.mark.parametrize('norm,knots', [('last', 2), ('last', 5), ('window', 2), ('window', 5)])
def test_folded_is_the_module(norm, knots, fits):
    model = rough(GateCfg(norm=norm, knots=knots, fits=fits, width=8))
    with torch.no_grad(): want = model(CTX).numpy()
    got = fold(model)(CTX.numpy())
    assert got.dtype == np.float32 and got.shape == (40, 96)
    np.testing.assert_allclose(got, want, atol=5e-5)

def test_folded_leaves_its_input_and_stays_finite_on_hostile_windows():
    f = fold(rough(GateCfg(norm='window')))
    for x in (np.full((3, 96), .8), np.zeros((1, 96)), np.where(np.arange(96) == 50, 2., .9)[None]):
        x = x.astype(np.float32); before = x.copy(); y = f(x)
        assert np.isfinite(y).all() and (x == before).all()
    assert f(np.empty((0, 96), np.float32)).shape == (0, 96)

def test_large_logits_do_not_overflow():
    model = rough(GateCfg(norm='last'))
    with torch.no_grad(): model.out.weight.mul_(1e4); want = model(CTX).numpy()
    np.testing.assert_allclose(fold(model)(CTX.numpy()), want, atol=1e-3)

def test_saved_and_loaded(tmp_path):
    model = rough(GateCfg(width=16)); model.save_pretrained(tmp_path/'m')
    again = load_forecaster(tmp_path/'m'); assert type(again) is CornerGate
    with torch.no_grad(): torch.testing.assert_close(again(CTX), model(CTX), rtol=0, atol=0)
    assert type(student('corner-gate', width=16)) is CornerGate

def test_firmware_refuses_what_it_would_compute_otherwise():
    with pytest.raises((InputError, ValueError)): quantize(rough(GateCfg()), CTX)

def test_fold_refuses():
    with pytest.raises(ValueError, match='got mlp last'): fold(student('mlp'))
    with pytest.raises(ValueError, match='got corner-gate none'): fold(CornerGate(GateCfg(norm='none')))
