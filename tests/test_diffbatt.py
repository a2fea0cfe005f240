"""DiffBatt: every block of the published network counted, samplers against each other, training that survives a stop, bad input."""
import json
import numpy as np, pytest, torch
from battnb.core import InputError
from battnb.diffbatt import (Attention, DiffBatt, DiffBattCfg, Draws, Down, Res, Up, decode, encode, fit_diffbatt, from_modes, levels_below, sinusoid, to_modes, train_diffbatt)
from battnb.diffusion import clean, draw, levels_of, noised, schedule, target
from battnb.simulate import simulate_fleet

def count(m): return sum(p.numel() for p in m.parameters())

def test_published_counts_block_by_block():
    net = DiffBatt(DiffBattCfg.published())
    assert net.n_params == 478_369
    assert count(net.time) == 2_112 and count(net.conditions) == 8_576 and count(net.net.stem) == 64
    assert count(net.net.down) == 115_808 and count(net.net.middle) == 70_912 and count(net.net.up) == 280_824
    assert count(net.net.norm) + count(net.net.head) == 73
    assert sum(isinstance(m, Attention) for m in net.net.down.modules()) == 4 and sum(isinstance(m, Attention) for m in net.net.up.modules()) == 6
    assert sum(isinstance(m, Res) for m in net.net.down.modules()) == 8 and sum(isinstance(m, Res) for m in net.net.up.modules()) == 12
    assert sum(isinstance(m, Down) for m in net.net.down) == 3 and sum(isinstance(m, Up) for m in net.net.up) == 3

def test_published_details():
    net = DiffBatt(DiffBattCfg.published())
    assert all(m.eps == 1e-3 for m in net.modules() if isinstance(m, torch.nn.GroupNorm))
    assert all(m.film is None for m in net.net.down.modules() if isinstance(m, Res)) and all(m.film is not None for m in net.net.up.modules() if isinstance(m, Res))
    assert all(m.film is None for m in net.net.middle if isinstance(m, Res))
    assert all(not m.conv2.weight.any() for m in net.modules() if isinstance(m, Res)) and not net.net.head.weight.any()
    assert all(not m.out.weight.any() for m in net.modules() if isinstance(m, Attention))
    x, t, c = torch.randn(2, 256), torch.tensor([3, 900]), dict(q=torch.randn(2, 100, 100))
    assert net(x, t, c, torch.ones(2, 1)).shape == (2, 256)
    d = Down(8); d.conv.bias.data.zero_(); d.conv.weight.data.zero_(); d.conv.weight.data[:, :, 2] = 1        # the third tap of the last window reads the padding
    assert d(torch.ones(1, 8, 8))[0, 0].tolist() == [8., 8., 8., 0.]

def test_attention_takes_its_residual_after_the_norm():
    a = Attention(8); x = torch.randn(1, 8, 5)*7 + 3
    assert torch.allclose(a(x), a.norm(x), atol=1e-6)                    # zero output projection: the norm remains, not x
    assert torch.allclose(sinusoid(torch.tensor([5.]), 8, interleave=True)[0, ::2], sinusoid(torch.tensor([5.]), 8, interleave=True).reshape(4, 2)[:, 0])

def test_hidden_condition_changes_nothing_when_there_is_none():
    net = DiffBatt(DiffBattCfg(cond=(('a', 2), ('b', 1)), size=4, width=16, depth=1))
    torch.nn.init.normal_(net.net.last.weight); torch.nn.init.normal_(net.net.films[0].weight); torch.nn.init.normal_(net.conditions.unknown); torch.nn.init.normal_(net.net.layers[0][-1].weight)
    x, t = torch.randn(3, 4), torch.tensor([1, 2, 3]); a, b = torch.randn(3, 2), torch.full((3, 1), float('nan'))
    keep = torch.ones(3, 2)
    nan, absent = net(x, t, dict(a=a, b=b), keep), net(x, t, dict(a=a), keep)
    assert torch.allclose(nan, absent, atol=1e-6) and torch.isfinite(nan).all()
    hidden = keep.clone(); hidden[:, 0] = 0
    assert torch.allclose(net(x, t, dict(a=a), hidden), net(x, t, {}, keep), atol=1e-6) and not torch.allclose(nan, net(x, t, {}, keep), atol=1e-3)

@pytest.mark.parametrize('name', ['linear', 'cosine'])
@pytest.mark.parametrize('predicts', ['eps', 'x0', 'v'])
def test_conversions_are_inverse(name, predicts):
    x0, eps = torch.randn(2, 20, 3, dtype=torch.float64); t, abar = torch.arange(20)*50, schedule(name)
    assert torch.allclose(clean(target(x0, eps, t, abar, predicts), noised(x0, eps, t, abar), t, abar, predicts), x0, atol=1e-6)

@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_samplers_meet_the_exact_gaussian(name):
    m, s, abar = -.7, .4, schedule(name)
    def denoise(x, t):
        a = abar[t].to(x).reshape(-1, 1); return m + a.sqrt()*s**2/(a*s**2 + 1 - a)*(x - a.sqrt()*m)
    for sampler, steps, eps in (('dpm', 15, .03), ('dpm', 25, .03), ('ddim', 200, .03), ('ancestral', 1000, .03), ('sde', 25, .03)):
        x = draw(denoise, (4000, 1), abar, sampler=sampler, steps=steps, seed=1)
        assert abs(x.mean() - m) < eps and abs(x.std() - s) < eps, (sampler, steps, x.mean(), x.std())
    assert len(levels_of(1000, abar, power=1.)) == 1000 and levels_of(1, abar).tolist() == [999]
    with pytest.raises(ValueError, match='sampler must be'): draw(denoise, (2, 1), abar, sampler='euler')

def test_training_resumes_to_the_same_weights(tmp_path):
    x, c = torch.randn(40, 3), dict(a=torch.randn(40, 2)); cfg = DiffBattCfg(size=3, cond=(('a', 2),), width=16, depth=1)
    (whole,), _ = train_diffbatt(cfg, x, c, steps=20, batch_size=16, seeds=(3,))
    class Stop(Exception): pass
    import battnb.training as tr
    real, seen = tr._step, []
    def stop(*a, **k):
        seen.append(1)
        if len(seen) == 13: raise Stop
        return real(*a, **k)
    tr._step = stop
    try:
        with pytest.raises(Stop): train_diffbatt(cfg, x, c, steps=20, batch_size=16, seeds=(3,), ckpt=tmp_path/'c.pt')
    finally: tr._step = real
    (again,), _ = train_diffbatt(cfg, x, c, steps=20, batch_size=16, seeds=(3,), ckpt=tmp_path/'c.pt')
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    with pytest.raises(InputError, match='written with'): train_diffbatt(cfg, x + 1, c, steps=20, batch_size=16, seeds=(3,), ckpt=tmp_path/'c.pt')

def test_seeds_side_by_side_are_seeds_alone():
    x, c = torch.randn(30, 4), dict(q=torch.randn(30, 5, 6)); cfg = DiffBattCfg(size=4, cond=(('q', 6),), width=16, depth=1)
    crowd, _ = train_diffbatt(cfg, x, c, steps=6, seeds=(0, 1, 2)); (alone,), _ = train_diffbatt(cfg, x, c, steps=6, seeds=(2,))
    for a, b in zip(crowd[2].parameters(), alone.parameters()): assert torch.allclose(a, b, atol=2e-3)
    assert not torch.allclose(crowd[0].net.first.weight, crowd[1].net.first.weight)

def test_curves_there_and_back():
    draws = Draws.from_cells(simulate_fleet(5, seed=5)); draws = draws.take(draws.soh[:, -1] < .97)
    x, level = encode(draws); back = decode(x, level)
    assert np.allclose(back.life, draws.life) and np.allclose(back.soh[:, 0], 1) and np.allclose(back.soh[:, -1], level)
    assert np.median(np.abs(back.soh - draws.soh)) < .005
    assert np.isnan(draws.on(np.array([1e6]))).all() and np.allclose(draws.on(np.array([0.])), 1)
    assert (levels_below(draws, 4, 0).life <= np.repeat(draws.life, 4) + 1e-9).all()
    assert np.allclose(to_modes(from_modes(x[:, 1:])), x[:, 1:])

def test_save_load_and_bad_folders(tmp_path):
    model = fit_diffbatt(simulate_fleet(3, seed=1), steps=4, width=16, depth=1)
    folder = model.save_pretrained(tmp_path/'m', card='# x', train_cells=['a'])
    back = DiffBatt.from_pretrained(folder)
    assert np.array_equal(back.sample(5, seed=3).soh, model.sample(5, seed=3).soh) and json.loads((folder/'config.json').read_text())['train_cells'] == ['a']
    assert not np.array_equal(back.sample(5, seed=3).soh, back.sample(5, seed=4).soh)
    (folder/'config.json').write_text(json.dumps(dict(arch='liquid')))
    with pytest.raises(InputError, match="'liquid'"): DiffBatt.from_pretrained(folder)
    shipped = DiffBatt(DiffBattCfg(cond=(('whole', 1), ('level', 1)), always=('whole', 'level'), width=16, depth=1))
    with pytest.raises(ValueError, match="missing \\['whole'\\]"): shipped.sample(2)
    with pytest.raises(ValueError, match='canvas'): DiffBatt(DiffBattCfg.published()).sample(2)

@pytest.fixture(scope='module')
def tiny(): return fit_diffbatt(simulate_fleet(3, seed=1), steps=2, width=16, depth=1)

@pytest.mark.parametrize('n', [0, -1, 2.5, True, None, '3', float('nan')])
def test_how_many_is_a_whole_number(tiny, n):
    for call in (lambda: tiny.sample(n), lambda: tiny.generate(n, dict(level=np.zeros((1, 1))))):
        with pytest.raises(ValueError, match='n must be a whole number of at least 1, got'): call()
    assert len(tiny.sample(np.int64(2))) == 2

def test_the_number_drawn_and_the_batch_change_nothing(tiny):
    few, many = tiny.sample(4, seed=1), tiny.sample(50, seed=1)
    assert np.allclose(few.soh, many.soh[:4], atol=1e-5) and np.allclose(few.life, many.life[:4], rtol=1e-4)
    level = dict(level=np.zeros((1, 1)))
    for sampler in ('dpm', 'ddim', 'ancestral'):
        whole, parts = (tiny.generate(9, level, sampler=sampler, steps=12, batch=b).numpy() for b in (100, 4))
        assert np.allclose(whole, parts, atol=1e-4), sampler

def test_conditions_that_cannot_be_used_are_named(tiny):
    with pytest.raises(ValueError, match="knows the conditions .*'level'.*got .*'chemistry'"): tiny.sample(2, cond=dict(chemistry=[1.]))
    for w in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='w must be finite'): tiny.sample(2, w=w)
    fleet = simulate_fleet(4, seed=1)
    for bad in (np.ones((3, 1)), np.ones(4)):
        with pytest.raises(ValueError, match=rf'must have the shape \({len(fleet)}, size\), got'): fit_diffbatt(fleet, cond=dict(a=bad), steps=1)
    flat = Draws(np.tile(np.linspace(0, 9, 65), (2, 1)), np.ones((2, 65)), np.zeros(2, bool))
    with pytest.raises(ValueError, match='none of the 2 curves falls'): fit_diffbatt(flat, steps=1)
    whole = DiffBatt(DiffBattCfg(cond=(('whole', 1), ('level', 1)), always=('whole', 'level'), width=16, depth=1))
    with pytest.raises(ValueError, match='completion.synthesise'): whole.sample(2)
