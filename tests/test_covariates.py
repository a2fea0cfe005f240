"""Covariates as a promise: every protocol at hand is read, nothing is invented, absence changes nothing, the base stays as it is."""
import numpy as np, pytest, torch
from battnb.core import data_root, torch_stream
from battnb.covariates import NAMES, Conditioned, FilmCfg, at_cutoff, c_rate, condition, covariates, standard
from battnb.data import Cells, load
from battnb.forecaster import load_forecaster
from battnb.timer import BatteryTimer, BatteryTimerCfg
from battnb.windows import make_windows

TINY = BatteryTimerCfg(d=16, layers=1, heads=2, ff=16)
NAN = float('nan')


@pytest.fixture(scope='module')
def fleet(): return load('fleet').take(load('fleet').ids[::9])


@pytest.fixture(scope='module')
def windows(fleet): return make_windows(fleet, stride=96)


def restless(cfg=TINY, seed=0):
    "A base whose head says something: random gates instead of the zeros of a fresh one."
    torch.manual_seed(seed)
    model = BatteryTimer(cfg).eval()
    torch.nn.init.normal_(model.gate.weight, std=.3)
    return model


@pytest.mark.parametrize('words, nominal, expected', [
    ('0.25C CC-CV to 4.2V', NAN, .25), ('1C CC to 3.9V', NAN, 1.), ('4C CC to 2.0V', NAN, 4.), ('5.4C(40%)-3.6C', NAN, 5.4*.4 + 3.6*.6), ('1C(4%)-6C', NAN, .04 + 6*.96),
    ('8-7-5.2C(4-step,10min to 80%)', NAN, (8+7+5.2)/3), ('CC in about 20-80% SOC window (3.5-3.9 V), 2C per BatteryML metadata', NAN, 2.), ('0.5C(100%) (DiffBatt feature vector)', NAN, .5),
    ('0.5 A reference cycles (kept); 2.4 A (1C) ageing cycles (dropped)', 2.4, 1.), ('2A CC (cut-offs 2.7/2.5/2.2/2.5V)', 2., 1.), ('4A 0.05Hz square wave', 2., 2.), ('fixed loads 4A and 1A', 2., 1.25),
    ('CC stages 5C(100-60% SOC)-5C(60-40%)-2C(40-20%)-1C(20%->2.0V)', NAN, 3.6), ('1C CC-CV, cutoff 0.05 C', NAN, 1.), ('C/3', NAN, NAN), ('25 °C', NAN, NAN), ('CLO 4-step (policy not identified)', 1.1, NAN), ('2A CC', NAN, NAN)])
def test_rates_of_protocols(words, nominal, expected):
    assert c_rate(words, nominal) == pytest.approx(expected, nan_ok=True)


@pytest.mark.skipif(data_root() is None, reason='measured cells are not at hand')
def test_rates_of_all_measured_cells_are_plausible():
    for name in ('clo', 'tju', 'nasa'):
        t = covariates(load(name))
        rates = t[['charge_c', 'discharge_c']].to_numpy()
        assert np.nanmin(rates) >= .2 and np.nanmax(rates) <= 10
        assert np.isnan(rates).mean() < .05, name
    assert covariates(load('ev20')).isna().all().all()


def test_a_table_without_the_columns_knows_nothing(windows, fleet):
    bare = Cells(fleet.cycles.drop(columns='temperature_c'), fleet.cells.drop(columns=['charge_protocol', 'discharge_protocol']).assign(temperature_c=np.nan), 'bare')
    assert torch.isnan(at_cutoff(bare, windows)).all()


def test_order_of_the_rows_does_not_matter(fleet, windows):
    shuffled = windows.take(np.random.default_rng(0).permutation(len(windows)))
    a, b = at_cutoff(fleet, windows), at_cutoff(fleet, shuffled)
    key = lambda w: [f'{c} {k}' for c, k in zip(w.cell_id, w.cutoff)]
    assert dict(zip(key(windows), a[:, 0].tolist())) == dict(zip(key(shuffled), b[:, 0].tolist()))


def test_a_gap_in_the_temperature_record_falls_back_on_the_chamber(fleet, windows):
    gone = fleet.cycles.copy()
    gone.loc[gone.cell_id == windows.cell_id[0], 'temperature_c'] = np.nan
    chamber = fleet.cells.set_index('cell_id').temperature_c[windows.cell_id[0]]
    assert at_cutoff(Cells(gone, fleet.cells, 'gone'), windows.take([0]))[0, 0] == pytest.approx(chamber)


@pytest.mark.parametrize('cov', [[[1e9, 1e9, 1e9]], [[-1e9, 0., 1e-30]]])
def test_absurd_values_stay_finite(cov):
    assert standard(torch.tensor(cov)).abs().max() <= 4


@pytest.mark.parametrize('length', [24, 96, 300])
def test_absence_is_exact_at_every_length_and_after_training(length, windows, fleet):
    base = restless()
    model = Conditioned.of(base)
    torch.nn.init.normal_(model.film.last.weight, generator=torch_stream(0, 'noise'))
    x = torch.rand(5, length, generator=torch_stream(1, 'noise'))*.01 + .9
    with torch.inference_mode():
        assert torch.equal(model.quantiles(x), base.quantiles(x))
        assert torch.equal(model.quantiles(x, torch.full((5, 3), NAN)), base.quantiles(x))
        assert not torch.equal(model.quantiles(x, torch.full((5, 3), 30.)), base.quantiles(x))


def test_no_hook_stays_behind_even_after_an_error():
    model = Conditioned.of(restless())
    with pytest.raises(ValueError): model.relative(torch.ones(1, 3), torch.ones(1, 3))
    model(torch.ones(1, 96), torch.ones(1, 3))
    assert not model.mix._forward_hooks


def test_quantiles_stay_in_order(windows, fleet):
    model = Conditioned.of(restless())
    torch.nn.init.normal_(model.film.last.weight, generator=torch_stream(0, 'noise'))
    with torch.inference_mode(): q = model.quantiles(windows.ctx[:20], at_cutoff(fleet, windows.take(slice(0, 20))))
    assert (q.diff(dim=-1) >= 0).all()


def test_training_repeats_moves_only_the_layer_and_leaves_the_base(fleet, windows):
    base = restless(); before = {k: v.clone() for k, v in base.state_dict().items()}
    cov = at_cutoff(fleet, windows)
    one, two = (condition(base, windows, cov, FilmCfg(steps=4, batch_size=16)) for _ in range(2))
    for k, v in before.items(): assert torch.equal(base.state_dict()[k], v) and torch.equal(one.state_dict()[k], v)
    for k, v in one.state_dict().items(): assert torch.equal(v, two.state_dict()[k])
    assert one.film.last.weight.abs().max() > 0
    assert all(p.requires_grad for p in base.parameters())


def test_nothing_known_teaches_nothing(windows):
    model = condition(restless(), windows, torch.full((len(windows), 3), NAN), FilmCfg(steps=3, batch_size=8))
    assert model.film.last.weight.abs().max() == 0


def test_saved_and_loaded(tmp_path, windows):
    model = Conditioned.of(restless()); torch.nn.init.normal_(model.film.last.weight, generator=torch_stream(0, 'noise'))
    model.save_pretrained(tmp_path)
    back, cov = load_forecaster(tmp_path), torch.full((5, len(NAMES)), 2.)
    assert isinstance(back, Conditioned) and isinstance(back, BatteryTimer)
    with torch.inference_mode(): assert torch.equal(back(windows.ctx[:5], cov), model(windows.ctx[:5], cov))
