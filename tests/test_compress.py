"""Compression: shapes after pruning, exactness of ranks, interruption-free descent, refusals."""
import copy
import pytest, torch
from battnb.core import InputError, torch_stream
from battnb.forecaster import load_forecaster
from battnb.layers import EulerLTC, FusedLTC
from battnb.liquid import DLNet, DLNetCfg, LiquidCfg, LiquidForecaster
from battnb.students import student
from battnb.windows import Windows

tp = pytest.importorskip('torch_pruning')
from battnb.compress import LowRankForecaster, account, descend, drop_units, flash_bytes, low_rank, multiply_adds, prune, recover      # noqa: E402

GEN = torch_stream(0, 'compress')
CTX = .95 - 2e-4*torch.arange(100.) + 2e-3*torch.randn(40, 100, generator=GEN)
def windows(n=40, name='a'):
    import numpy as np
    return Windows(CTX[:n, :96], CTX[:n, -96:], np.array([name]*n), np.arange(n), np.array(['toy']*n))

MODELS = {'liquid': lambda: LiquidForecaster(LiquidCfg(units=10)), 'euler': lambda: LiquidForecaster(LiquidCfg(units=10, cell='euler', dt=.5)), 'mlp': lambda: student('mlp', width=20), 'deep mlp': lambda: student('mlp', width=20, layers=3, skip=True),
          'gate': lambda: student('gate', width=20), 'dlnet': lambda: DLNet(DLNetCfg(units=8, rank=8, steps=1, dt=.05))}

@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('ratio', [.1, .5, .9])
def test_pruned_models_are_ordinary_models(tmp_path, name, ratio):
    model = MODELS[name]().eval(); before = copy.deepcopy(model.state_dict())
    small = prune(model, ratio)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())                    # the original is untouched
    assert small.n_params < model.n_params and type(small) is type(model) and small(CTX).shape == model(CTX).shape
    assert torch.equal(load_forecaster(small.save_pretrained(tmp_path))(CTX), small(CTX))
    fresh = type(small)(small.cfg); assert [p.shape for p in fresh.parameters()] == [p.shape for p in small.parameters()]
    small.train()(CTX).square().mean().backward()                                                   # and trains
    assert multiply_adds(small.eval()) < multiply_adds(model) and flash_bytes(small) < flash_bytes(model)

def test_the_weakest_units_go_first():
    model = student('mlp', width=6)
    with torch.no_grad():
        for i, p in enumerate((5., .1, 4., .2, 3., .3)): model.layers[0].weight[i] = p; model.out.weight[:, i] = p
    small = prune(model, .5)
    assert torch.equal(small.layers[0].weight[:, 0], torch.tensor([5., 4., 3.]))
    flipped = prune(model, .5, lambda group, **_: -model.layers[0].weight.detach().square().sum(1))
    assert torch.equal(flipped.layers[0].weight[:, 0], torch.tensor([.1, .2, .3]))

def test_liquid_units_keep_their_own_numbers():
    cell = FusedLTC(6, 2, gen=torch_stream(1, 'units')); whole = copy.deepcopy(cell)
    drop_units(cell, [0, 3])
    keep = [1, 2, 4, 5]
    assert torch.equal(cell.weight, whole.weight[keep][:, keep]) and torch.equal(cell.tau, whole.tau[keep]) and torch.equal(cell.weight_in, whole.weight_in[keep]) and cell.units == 4
    assert isinstance(drop_units(EulerLTC(4, 1), [1]), EulerLTC)
    with pytest.raises(ValueError, match='at least one'): drop_units(cell, range(4))

def test_published_dlnet_counts_after_pruning():
    for decoder, count in (((256, 128), 75_293), ((233, 112), 66_812)): assert DLNet(DLNetCfg(units=4, rank=4, steps=1, dt=.05, decoder=decoder)).n_params == count

def test_low_rank_is_exact_at_full_rank_and_monotone(tmp_path):
    from battnb.evaluation import fit_ridge
    ridge = fit_ridge(windows()); truth = ridge(CTX[:, :96]).detach()
    errors = [(low_rank(ridge, r, CTX[:, :96])(CTX[:, :96]).detach() - truth).square().mean().item() for r in (1, 2, 8, 96)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10
    thin = low_rank(ridge, 3, CTX[:, :96]); assert thin.n_params == 3*192 and isinstance(load_forecaster(thin.save_pretrained(tmp_path)), LowRankForecaster)
    torch.testing.assert_close(thin(CTX[:, :96] + .1), thin(CTX[:, :96]) + .1, rtol=0, atol=1e-5)

def test_descent_names_sizes_and_recovery_never_hurts_on_validation():
    way = descend(MODELS['mlp'](), [.25, .5], windows(30, 'a'), windows(10, 'b'), steps=4)
    assert list(way) == ['as it was', 'pruned 25%', 'pruned 25%, recovered', 'pruned 50%', 'pruned 50%, recovered']
    assert [m.cfg.width for m in way.values()] == [20, 15, 15, 10, 10]
    valid = windows(10, 'b'); error = lambda m: (m(valid.ctx) - valid.targ).abs().mean().item()
    assert error(way['pruned 25%, recovered']) <= error(way['pruned 25%']) + 1e-7
    table = account(way, valid); assert list(table.columns) == ['mae', 'weights', 'multiply_adds', 'flash_bytes', 'error_share', 'size_share'] and table.size_share.iloc[0] == 1
    model = MODELS['mlp'](); start = copy.deepcopy(model.state_dict()); recover(model, windows(), valid, steps=2, lr=1e3)
    assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())                     # a ruinous recovery is undone

@pytest.mark.parametrize('call,error,words', [
    (lambda: prune(MODELS['mlp'](), 1.), ValueError, 'got 1.0'), (lambda: prune(MODELS['mlp'](), -.1), ValueError, 'got -0.1'), (lambda: prune(student('paifilter'), .5), InputError, "not 'paifilter'"),
    (lambda: descend(MODELS['mlp'](), [.5, .5, 1.], windows(), windows()), ValueError, 'must ascend'), (lambda: low_rank(student('mlp'), 2, CTX[:, :96]), InputError, "'mlp' is not linear"), (lambda: low_rank(student('mlp'), 97, CTX[:, :96]), ValueError, 'got 97')])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call()

def test_without_the_library_the_sentence_says_what_to_install(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    with pytest.raises(InputError, match=r'battnb\[compress\]'): prune(MODELS['mlp'](), .5)

def test_recovery_listens_to_a_teacher_by_its_share():
    away = lambda c: c[:, -1:].expand(-1, 96) - .2
    def recovered(lam, **kw):
        model = MODELS['mlp'](); recover(model, windows(30, 'a'), Windows(CTX[:10, :96], away(CTX[:10, :96]), windows(10, 'b').cell_id, windows(10).cutoff, windows(10).dataset), steps=40, lr=1e-2, lam=lam, **kw)
        return (model(CTX[:, :96]) - away(CTX[:, :96])).abs().mean().item()
    assert recovered(0., teacher=away) < .5*recovered(1., teacher=away) and recovered(1., teacher=away) == pytest.approx(recovered(.3), rel=1e-6)
    with pytest.raises(ValueError, match='got -0.5'): recover(MODELS['mlp'](), windows(), windows(10, 'b'), lam=-.5)
    with pytest.raises(ValueError, match='must not be trained on'): recover(MODELS['mlp'](), windows(30, 'a'), windows(10, 'a'))
