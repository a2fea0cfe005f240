"""Tuning as a promise: what may be left out, what repeats, what an interruption changes, what stays untouched."""
import dataclasses
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file
import battnb.tune as tune_module
from battnb.core import InputError, torch_stream
from battnb.data import load
from battnb.evaluation import NAIVE, metrics
from battnb.timer import SEVEN, BatteryTimer, BatteryTimerCfg, add_lora, merge_adapter
from battnb.training import fit
from battnb.trend import rise
from battnb.tune import TuneCfg, choose, draw_length, in_unit, leave_one_set_out, pretrain, record_batches, trend_unit, tune, unit_pinball
from battnb.windows import make_windows

FEW = TuneCfg(rank=2, alpha=4, steps=6, batch_size=16, lr=5e-3)


@pytest.fixture(scope='module')
def sets():
    fleet = load('fleet')
    of = fleet.cells.groupby('dataset', sort=False).cell_id.agg(list)
    return {n: fleet.take(of[n][:4]) for n in list(of.index)[:3]}


@pytest.fixture(scope='module')
def two(sets): return dict(list(sets.items())[:2])


@pytest.fixture
def base():
    "Small, and with no output that is zero, so that a detour can change the forecast."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0); model = BatteryTimer(BatteryTimerCfg(d=16, layers=1, heads=2, ff=16)).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if not p.any(): p.normal_(0, .1, generator=torch_stream(0, n))
    return model


def weights(model): return {k: v.detach().clone() for k, v in model.state_dict().items()}
def same(a, b): return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
def adapter_of(folder): return load_file(folder/'adapter_model.safetensors')


# ---------------------------------------------------------------- the adapter
def test_equal_seeds_give_equal_adapters(base, two, tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)): tune(base, two, FEW, seed=seed, adapter=tmp_path/name)
    a, b, c = (adapter_of(tmp_path/n) for n in 'abc')
    assert same(a, b) and not same(a, c)


def test_what_torch_drew_before_does_not_matter(base, two):
    torch.manual_seed(1); one = weights(tune(base, two, FEW))
    torch.manual_seed(2); torch.rand(5)
    assert same(weights(tune(base, two, FEW)), one)


def test_tuning_leaves_the_generator_of_the_caller_alone(base, two):
    state = torch.get_rng_state()
    tune(base, two, FEW)
    assert torch.equal(torch.get_rng_state(), state)


def test_tuning_leaves_the_base_untouched(base, two):
    before, flags, x = weights(base), [p.requires_grad for p in base.parameters()], torch.rand(3, 96)
    out = base(x).detach()
    tuned = tune(base, two, FEW)
    assert same(weights(base), before) and [p.requires_grad for p in base.parameters()] == flags and not base.training
    assert torch.equal(base(x), out) and not torch.equal(tuned(x), out)
    assert not tuned.training and list(tuned.state_dict()) == list(before) and tuned.cfg == base.cfg


def test_only_the_targets_change(base, two):
    for targets in (('q_proj',), ('gate_proj', 'down_proj'), SEVEN):
        after, before = weights(tune(base, two, dataclasses.replace(FEW, targets=targets))), weights(base)
        changed = {k.split('.')[-2] for k in before if not torch.equal(before[k], after[k])}
        assert changed == set(targets)


def test_no_step_gives_back_the_base(base, two):
    assert same(weights(tune(base, two, dataclasses.replace(FEW, steps=0))), weights(base))


def test_stored_adapter_is_the_tuned_model(base, two, tmp_path):
    tuned = tune(base, two, FEW, adapter=tmp_path/'adapter')
    again = BatteryTimer(base.cfg); again.load_state_dict(base.state_dict())
    for (k, a), b in zip(merge_adapter(again, tmp_path/'adapter').state_dict().items(), tuned.state_dict().values()): torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=k)
    assert all(k.startswith('base_model.model.timer.model.layers.') for k in adapter_of(tmp_path/'adapter'))


# ---------------------------------------------------------------- interruption
def test_interrupted_tuning_goes_on_to_the_same_adapter(base, two, tmp_path, monkeypatch):
    cfg, real, seen = dataclasses.replace(FEW, steps=130), record_batches, []
    tune(base, two, cfg, seed=1, adapter=tmp_path/'whole')
    def power_cut(*args, **kwargs):
        batch = real(*args, **kwargs)
        def inner(step):
            seen.append(step)
            if step == 115: raise KeyboardInterrupt
            return batch(step)
        return inner
    monkeypatch.setattr(tune_module, 'record_batches', power_cut)
    with pytest.raises(KeyboardInterrupt): tune(base, two, cfg, seed=1, ckpt=tmp_path/'c.pt')
    assert (tmp_path/'c.pt').is_file() and len(seen) == 116
    monkeypatch.setattr(tune_module, 'record_batches', lambda *a, **k: (lambda batch: lambda step: (seen.append(step), batch(step))[1])(real(*a, **k)))
    tune(base, two, cfg, seed=1, ckpt=tmp_path/'c.pt', adapter=tmp_path/'cut')
    assert seen[116:] == list(range(100, 130))                        # from the last checkpoint, not from the start
    assert same(adapter_of(tmp_path/'whole'), adapter_of(tmp_path/'cut'))
    tune(base, two, cfg, seed=1, ckpt=tmp_path/'c.pt', adapter=tmp_path/'again')
    assert len(seen) == 146 and same(adapter_of(tmp_path/'whole'), adapter_of(tmp_path/'again'))       # finished: no further step


def test_a_checkpoint_of_other_settings_is_refused(base, two, tmp_path):
    tune(base, two, FEW, ckpt=tmp_path/'c.pt')
    for kw, seed in ((dict(steps=7), 0), (dict(lr=1e-3), 0), ({}, 5)):
        with pytest.raises(InputError, match='was written with'): tune(base, two, dataclasses.replace(FEW, **kw), seed=seed, ckpt=tmp_path/'c.pt')


@pytest.mark.parametrize('change', ['lam', 'rank', 'alpha', 'targets', 'batch_size', 'drawn', 'sets', 'base'])
def test_a_checkpoint_of_another_tuning_is_refused(base, sets, two, tmp_path, change):
    tune(base, two, FEW, ckpt=tmp_path/'c.pt')
    cfg, cells, other = FEW, two, base
    if change in ('lam', 'rank', 'alpha', 'batch_size', 'drawn', 'targets'): cfg = dataclasses.replace(FEW, **{change: dict(lam=.5, rank=4, alpha=8., batch_size=17, drawn=0., targets=('q_proj',))[change]})
    if change == 'sets': cells = {n: c for n, c in sets.items() if n not in list(two)[:1]}
    if change == 'base': other = BatteryTimer(base.cfg).eval()
    with pytest.raises(InputError): tune(other, cells, cfg, ckpt=tmp_path/'c.pt')


# ---------------------------------------------------------------- the loss
def test_lam_zero_is_the_pure_loss(base, two):
    cfg = dataclasses.replace(FEW, lam=0.)
    model = BatteryTimer(base.cfg); model.load_state_dict(base.state_dict())
    lora = add_lora(model, cfg.rank, cfg.alpha, cfg.dropout, cfg.targets, 0)
    fit(lora, record_batches(two, cfg, 96, 0), unit_pinball, steps=cfg.steps, lr=cfg.lr, weight_decay=0., ema=.99, predict=in_unit(lora), seed=0)
    assert same(weights(lora.merge_and_unload()), weights(tune(base, two, cfg)))


def test_lam_matters_and_pulls_ends_down(base, two):
    up = {n: dataclasses.replace(c, cycles=c.cycles.assign(soh=1.9 - c.cycles.soh)) for n, c in two.items()}         # records that rise, so that there is something to pull down
    x = torch.cat([make_windows(c, stride=96).ctx for c in up.values()])
    risen = [rise(tune(base, up, dataclasses.replace(FEW, lam=lam, steps=40))(x)).mean().item() for lam in (0., 50.)]
    assert 0 <= risen[1] < risen[0]
    with pytest.raises(ValueError, match='lam must be >= 0'): tune(base, two, dataclasses.replace(FEW, lam=-.1))


def test_unit_of_the_trend_is_one_number_of_the_training_sets(sets, two):
    by_hand = np.median([c.soh(i)[::-1][96*k:96*(k+1)].std() for c in two.values() for i in c.ids for k in range(len(c.soh(i))//96)])
    assert trend_unit(two) == pytest.approx(by_hand, rel=1e-5) and trend_unit({}) == .01


def test_pinball_of_quantiles_in_unit_equals_scaled_pinball(base):
    x, y = torch.rand(5, 120), torch.rand(5, 96)
    q, s = base.quantiles(x), base.scale(x)
    p, err = torch.tensor(base.cfg.levels), (y[..., None] - q)/s[..., None]
    torch.testing.assert_close(unit_pinball(in_unit(base)(x), y), torch.where(err > 0, p*err, (p-1)*err).mean())


# ---------------------------------------------------------------- batches
def test_recorded_batches_hold_training_records_only(two):
    batch = record_batches(two, TuneCfg(batch_size=16, drawn=0.), seed=0)
    records = {n: [c.soh(i) for i in c.ids] for n, c in two.items()}
    for step in range(12):
        ctx, targ = batch(step)
        rows = torch.cat([ctx, targ], 1).numpy()
        if not all(any(len(r) >= rows.shape[1] for r in rs) for rs in records.values()): continue        # longer than any record: stretched ones serve
        found = [n for row in rows for n, rs in records.items() if any((np.lib.stride_tricks.sliding_window_view(r, len(row)) == row).all(1).any() for r in rs if len(r) >= len(row))]
        assert len(found) >= len(rows)                                 # every row is a stretch of a record
        assert min(found.count(n) for n in two) >= len(rows)//2        # and sets have equal shares


def test_batches_differ_by_step_and_seed_and_lengths_are_all_used(two):
    one, other = record_batches(two, FEW, seed=0), record_batches(two, FEW, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one(4), record_batches(two, FEW, seed=0)(4)))
    assert not torch.equal(one(4)[1], other(4)[1][:len(one(4)[1])]) and not torch.equal(one(4)[1], one(5)[1][:len(one(4)[1])])
    gen = np.random.default_rng(0)
    share = pd.Series([draw_length(gen) for _ in range(4000)]).value_counts(normalize=True)
    assert share[96] == pytest.approx(.45, abs=.03) and set(share.index) == {96, *tune_module.LENGTHS}


def test_sets_too_short_are_left_aside_and_named(two):
    (name, cells), = list(two.items())[:1]
    short = dataclasses.replace(cells, cycles=cells.cycles[cells.cycles.cycle <= 60])
    ctx, targ = record_batches({'short': short, name: cells}, FEW)(0)
    assert torch.isfinite(ctx).all() and torch.isfinite(targ).all()
    with pytest.raises(ValueError, match='needs a cell of at least 120 cycles, the longest has'): tune_module.tune(BatteryTimer(BatteryTimerCfg(d=8, layers=1, heads=2, ff=8)), {'short': short}, FEW)


# ---------------------------------------------------------------- pre-training
def test_pretraining_repeats_and_resumes(tmp_path):
    cfg = BatteryTimerCfg(d=8, layers=1, heads=2, ff=8)
    run = lambda **kw: weights(pretrain(cfg, **({'steps': 6, 'batch_size': 16, 'every': 2} | kw))[0])
    a = run()
    assert same(a, run()) and not same(a, run(seed=1))
    assert same(a, run(ckpt=tmp_path/'p.pt')) and same(a, run(ckpt=tmp_path/'p.pt'))
    with pytest.raises(InputError, match='was written with'): run(ckpt=tmp_path/'p.pt', steps=8)


# ---------------------------------------------------------------- leaving sets out
def test_one_group_is_refused(base, two):
    first = dict(list(two.items())[:1])
    with pytest.raises(ValueError, match='at least two groups'): leave_one_set_out(base, first, {'as it is': None})
    with pytest.raises(ValueError, match='at least two groups'): leave_one_set_out(base, two, {'as it is': None}, groups={n: 'one maker' for n in two})
    with pytest.raises(ValueError, match='at least two groups'): leave_one_set_out(base, {}, {'as it is': None})


def test_a_tuning_never_sees_what_judges_it(base, sets, monkeypatch):
    a, b, c = sets
    seen = []
    monkeypatch.setattr(tune_module, 'tune', lambda base, rest, cfg, **kw: seen.append(set(rest)) or base)
    table = leave_one_set_out(base, sets, {'LoRA': FEW, 'as it is': None}, groups={a: 'x', b: 'x', c: 'y'}, stride=200)
    assert seen == [{c}, {a, b}]
    assert set(zip(table.candidate, table.held_out)) == {(k, n) for k in ('LoRA', 'as it is') for n in sets}


def test_the_table_says_what_it_means(base, two):
    keep = {}
    table = leave_one_set_out(base, two, {'as it is': None}, stride=200, keep=keep).set_index('held_out')
    for n, c in two.items():
        w = make_windows(c, stride=200)
        bars = {k: metrics(f(w.ctx, 96), w.targ)['mae'] for k, f in NAIVE.items()}
        assert table.best_naive[n] == min(bars, key=bars.get) and table.naive_mae[n] == pytest.approx(min(bars.values()))
        assert table.mae[n] == pytest.approx(metrics(base(w.ctx).detach(), w.targ)['mae'], rel=1e-4) and table.ratio[n] == pytest.approx(table.mae[n]/table.naive_mae[n])
        assert keep['as it is', n].shape == (len(w), 96, 7)


def test_leaving_out_resumes(base, two, tmp_path, monkeypatch):
    run = lambda: leave_one_set_out(base, two, {'LoRA': FEW}, stride=200, ckpt_dir=tmp_path)
    first = run()
    assert sorted(p.name.split('-')[1] for p in tmp_path.iterdir()) == sorted(two)
    def no_more(*a, **k):
        def batch(step): raise AssertionError('a finished tuning took a step')
        return batch
    monkeypatch.setattr(tune_module, 'record_batches', no_more)
    pd.testing.assert_frame_equal(first, run())


def test_choice_is_by_geometric_mean():
    table = pd.DataFrame([dict(candidate=c, held_out=n, ratio=r) for c, rs in {'even': (.9, .9), 'moody': (.5, 1.5), 'lucky': (.2, 5.)}.items() for n, r in zip('ab', rs)])
    assert choose(table) == 'moody'               # .866 against .9 and 1: no set decides alone, but a large gain counts
    assert choose(table[table.candidate != 'moody']) == 'even'
