"""The standard runtime: refusals everywhere, conversions where TensorFlow is installed."""
import numpy as np
import pytest
import torch
from battnb import tflite as T
from battnb.core import InputError
from battnb.liquid import LiquidCfg, LiquidForecaster
from battnb.quantize import quantize
from battnb.students import student

def fades(n, seed=0):
    g, t = np.random.default_rng(seed), np.arange(96)
    return (1 - g.uniform(0, .2, (n, 1)) - g.uniform(0, 1e-3, (n, 1))*t + g.normal(0, .001, (n, 96))).astype(np.float32)

def test_without_tensorflow_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(T, 'have_tflite', lambda: False)
    with pytest.raises(InputError, match='edge-tf'): T.convert(lambda x: x, [(1, 2)], [[np.zeros((1, 2), np.float32)]])

def test_refusals_need_no_tensorflow():
    with pytest.raises(InputError, match='needs 16 bits'): T.export_step(LiquidForecaster(LiquidCfg(units=4, cell='euler', dt=.5)), fades(3), 'int8')
    with pytest.raises(InputError, match='no 16-bit division'): T.export_step(LiquidForecaster(LiquidCfg(units=4)), fades(3))
    with pytest.raises(ValueError, match="got 'int4'"): T.convert(None, [], [], 'int4')
    with pytest.raises(InputError, match='reads its context as it is'): T.feed_forward(student('dlinear'))

@pytest.mark.skipif(not T.have_tflite(), reason='TensorFlow, LiteRT and tflite-micro are not installed')
def test_a_network_comes_back_from_both_runtimes():
    m, x = student('mlp', width=8, seed=1), fades(40)
    flat = T.export(m, x, 'int8')
    with torch.no_grad(): exact = m(torch.from_numpy(x)).numpy()
    spread = exact.std()
    for kind in ('tflm', 'litert'): assert np.abs(T.forecast(flat, x[:5], kind) - exact[:5]).mean() < .2*spread
    assert flat.arena() > 500 and len(flat.data) > 1000 and np.abs(quantize(m, x)(x) - exact).mean() < np.abs(T.forecast(flat, x) - exact).mean()
