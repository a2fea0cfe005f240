"""Timer and Battery-Timer: the published layout at full size, adapters, every length, odd records, long horizons, and what ships."""
import json, math, os, time
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from battnb.augment import corrupt, curve_prior
from battnb.core import InputError, checksum, stream, torch_stream, weights_dir
from battnb.evaluation import NAIVE, metrics
from battnb.timer import SEVEN, BatteryTimer, Timer, TimerCfg, add_lora, extend, merge_adapter
from battnb.tune import TuneCfg

PUBLISHED = dict(model_type='timer', hidden_size=1024, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048, input_token_len=96,
                 output_token_lens=[96], rope_theta=10000, max_position_embeddings=10000, hidden_act='silu', torch_dtype='float32')
SHA256 = '9c3d18f12ffe1ea7d4fa70eb3304b26e3841164a6a265fbae4f7a05cd213aa3d'    # of the published model.safetensors
TINY = TimerCfg(d=32, layers=2, heads=2, ff=64)
LENGTHS = (12, 13, 17, 24, 25, 31, 47, 48, 49, 95, 96, 97, 119, 191, 500, 959, 960, 961, 1501, 2000)


def records(n, length, name, seed=11): return torch.from_numpy(corrupt(curve_prior(n, length, gen := stream(seed, name)), gen))


def write_published(folder, state, **config):
    Path(folder, 'config.json').write_text(json.dumps(PUBLISHED | config))
    save_file(state, Path(folder)/'model.safetensors')


def timer(cfg=TINY, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Timer(cfg).eval()


def shipped(name):
    if not (weights_dir()/name/'model.safetensors').is_file(): pytest.skip(f'{name} is not among the weights of this checkout')
    return BatteryTimer.from_pretrained(weights_dir()/name)


@pytest.fixture(scope='module', params=['random', 'timer-mini', 'battery-timer'])
def model(request):
    "What holds for any weights is asked of random ones too, in which nothing is zero."
    if request.param != 'random': return shipped(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0); m = BatteryTimer().eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if not p.any(): p.normal_(0, .05, generator=torch_stream(0, n))
    return m


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(): yield


# ---------------------------------------------------------------- the published layout
def test_base_size_round_trip_is_bit_equal(tmp_path):
    base = timer(TimerCfg())
    state = base.state_dict()
    assert (base.n_params, len(state)) == (84_142_080, 116)
    write_published(tmp_path, state)
    assert abs((tmp_path/'model.safetensors').stat().st_size/1e6 - 336.57) < .1
    back = Timer.from_pretrained(tmp_path)
    assert back.cfg == TimerCfg() and not back.training
    assert list(back.state_dict()) == list(state) and all(torch.equal(v, state[k]) for k, v in back.state_dict().items())
    for L in (96, 250): assert torch.equal(back(x := records(2, L, 'base')), base(x))


def test_published_names():
    with torch.device('meta'): keys = set(Timer(TimerCfg()).state_dict())
    attn = [f'self_attn.{p}_proj.{k}' for p in 'qkv' for k in ('weight', 'bias')] + ['self_attn.o_proj.weight']
    per_layer = attn + [f'ffn_layer.{p}_proj.weight' for p in ('gate', 'up', 'down')] + [f'norm{i}.{k}' for i in (1, 2) for k in ('weight', 'bias')]
    assert keys == {'model.embed_layer.emb.weight', 'model.norm.weight', 'model.norm.bias', 'lm_heads.0.weight'} | {f'model.layers.{i}.{k}' for i in range(8) for k in per_layer}


@pytest.mark.parametrize('damage', ['key missing', 'key too many', 'wrong shape', 'half a file', 'no weights', 'no config', 'no json', 'another kind',
                                    'sizes missing'])
def test_unusable_folders_are_refused(tmp_path, damage):
    state, sizes = timer().state_dict(), dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    if damage == 'key missing': state.pop('model.norm.bias')
    if damage == 'key too many': state['model.extra'] = torch.zeros(1)
    if damage == 'wrong shape': state['lm_heads.0.weight'] = torch.zeros(95, 32)
    write_published(tmp_path, state, **sizes)
    weights, config = tmp_path/'model.safetensors', tmp_path/'config.json'
    if damage == 'half a file': weights.write_bytes(weights.read_bytes()[:1000])
    if damage == 'no weights': weights.unlink()
    if damage == 'no config': config.unlink()
    if damage == 'no json': config.write_text('{')
    if damage == 'sizes missing': config.write_text(json.dumps(dict(model_type='timer', hidden_size=32)))
    if damage == 'another kind': config.write_text(json.dumps(dict(model_type='llama')))
    with pytest.raises(InputError): Timer.from_pretrained(tmp_path)


def by_hand(state, ctx, cfg):
    "The equations of the published architecture once more: loops, explicit softmax, complex numbers for the rotation. float64."
    w, d = {k: v.double() for k, v in state.items()}, cfg.d//cfg.heads
    ctx = ctx.double(); mean, std = ctx.mean(1, keepdim=True), ctx.std(1, keepdim=True, correction=0)
    def norm(h, key): return (h - h.mean(-1, keepdim=True))/(h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()*w[f'{key}.weight'] + w[f'{key}.bias']
    n = ctx.shape[1]//cfg.patch
    h = torch.stack([((ctx-mean)/std)[:, ctx.shape[1]-(n-i)*cfg.patch:][:, :cfg.patch] for i in range(n)], 1) @ w['model.embed_layer.emb.weight'].T
    turn = torch.polar(torch.ones(n, d//2, dtype=torch.float64), torch.arange(n)[:, None]*cfg.theta**(-torch.arange(d//2, dtype=torch.float64)*2/d))
    def rotated(x): z = torch.complex(x[..., :d//2], x[..., d//2:])*turn; return torch.cat([z.real, z.imag], -1)
    for i in range(cfg.layers):
        at, ff, heads = f'model.layers.{i}.self_attn', f'model.layers.{i}.ffn_layer', []
        q, k, v = (h @ w[f'{at}.{p}_proj.weight'].T + w[f'{at}.{p}_proj.bias'] for p in 'qkv')
        for j in range(cfg.heads):
            s = slice(j*d, (j+1)*d)
            logits = rotated(q[..., s]) @ rotated(k[..., s]).mT/math.sqrt(d)
            heads.append(logits.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1) @ v[..., s])
        h = norm(h + torch.cat(heads, -1) @ w[f'{at}.o_proj.weight'].T, f'model.layers.{i}.norm1')
        gate = h @ w[f'{ff}.gate_proj.weight'].T
        h = norm(h + (gate*torch.sigmoid(gate)*(h @ w[f'{ff}.up_proj.weight'].T)) @ w[f'{ff}.down_proj.weight'].T, f'model.layers.{i}.norm2')
    return mean + std*(norm(h, 'model.norm')[:, -1] @ w['lm_heads.0.weight'].T)


@pytest.mark.parametrize('L', (96, 200, 500))
def test_architecture_equals_its_equations(L):
    m, x = timer(), records(4, L, f'hand {L}')
    torch.testing.assert_close(m(x).double(), by_hand(m.state_dict(), x, TINY), atol=2e-6, rtol=0)


@pytest.mark.skipif('BATTNB_TIMER_WEIGHTS' not in os.environ, reason='BATTNB_TIMER_WEIGHTS names no folder with the published weights')
def test_real_weights():
    folder = Path(os.environ['BATTNB_TIMER_WEIGHTS'])
    assert checksum(folder/'model.safetensors') == SHA256
    m, x = Timer.from_pretrained(folder), records(16, 480, 'real')
    assert m.n_params == 84_142_080
    for L in (96, 480): torch.testing.assert_close(m(x[:, -L:]).double(), by_hand(m.state_dict(), x[:, -L:], m.cfg), atol=1e-4, rtol=0)
    t = torch.arange(768.)       # trained on seasons and trends, it must continue a sine better than persistence does
    wave = torch.sin(2*math.pi*t/24)[None]
    assert (m(wave[:, :672]) - wave[:, 672:]).abs().mean() < .5*(wave[:, 671:672] - wave[:, 672:]).abs().mean()


# ---------------------------------------------------------------- one token
def test_queries_and_keys_are_dead_at_one_token_and_alive_at_two():
    m, x = timer(), records(4, 192, 'token')
    before = {L: m(x[:, -L:]) for L in (96, 191, 192)}
    for n, p in m.named_parameters():
        if 'q_proj' in n or 'k_proj' in n: p.normal_(generator=torch_stream(0, n))
    for L in (96, 191): assert torch.equal(m(x[:, -L:]), before[L])       # 191 values: still one token of 96
    assert (m(x) - before[192]).abs().max() > 1e-5


# ---------------------------------------------------------------- adapters
@pytest.fixture
def adapter(tmp_path):
    "An adapter as peft writes it, of a base whose seed is 5, with detours that do something."
    lora = add_lora(timer(seed=5))
    for n, p in lora.named_parameters():
        if 'lora_B' in n: p.normal_(0, .05, generator=torch_stream(1, n))
    lora.save_pretrained(str(tmp_path/'adapter'))
    return tmp_path/'adapter'


def test_adapter_has_the_published_layout(adapter):
    config, state = json.loads((adapter/'adapter_config.json').read_text()), load_file(adapter/'adapter_model.safetensors')
    assert (config['peft_type'], config['r'], config['lora_alpha'], config['lora_dropout'], config['bias'], config['task_type']) == ('LORA', 8, 16, .05, 'none', None)
    assert set(config['target_modules']) == set(SEVEN) and not config['use_dora'] and not config['use_rslora']
    layers = [f'self_attn.{p}_proj' for p in 'qkvo'] + [f'ffn_layer.{p}_proj' for p in ('gate', 'up', 'down')]
    assert set(state) == {f'base_model.model.model.layers.{i}.{layer}.lora_{k}.weight' for i in range(2) for layer in layers for k in 'AB'}
    assert state['base_model.model.model.layers.1.ffn_layer.down_proj.lora_A.weight'].shape == (8, 64)
    assert state['base_model.model.model.layers.1.ffn_layer.down_proj.lora_B.weight'].shape == (32, 8)


def test_merge_equals_that_of_peft(adapter):
    from peft import PeftModel
    x = records(8, 300, 'merge')
    ours = merge_adapter(timer(seed=5), adapter).eval()
    theirs = PeftModel.from_pretrained(timer(seed=5), str(adapter)).merge_and_unload().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict()) == list(timer().state_dict())
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()): torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=k)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)
    assert (ours(x) - timer(seed=5)(x)).abs().max() > 1e-4


def test_adapters_that_do_not_belong_are_refused(adapter):
    with pytest.raises(InputError, match='has no layer'): merge_adapter(timer(TimerCfg(d=32, layers=1, heads=2, ff=64)), adapter)
    config = json.loads((adapter/'adapter_config.json').read_text())
    for kind in ('use_dora', 'use_rslora'):
        (adapter/'adapter_config.json').write_text(json.dumps(config | {kind: True}))
        with pytest.raises(InputError, match='only plain LoRA'): merge_adapter(timer(), adapter)
    with pytest.raises(ValueError, match='match none'): add_lora(timer(), targets=('q_proj', 'query'))


@pytest.mark.parametrize('damage', ['half a file', 'no file', 'no config', 'a factor missing', 'another size', 'more than detours'])
def test_damaged_adapters_are_refused_and_leave_the_base_alone(adapter, damage):
    weights, base = adapter/'adapter_model.safetensors', timer(TimerCfg(d=64, layers=2, heads=2, ff=128) if damage == 'another size' else TINY)
    state = load_file(weights)
    if damage == 'a factor missing': state.pop([k for k in state if 'lora_B' in k][-1])
    if damage == 'more than detours': state['base_model.model.lm_heads.0.weight'] = torch.zeros(96, 32)      # peft's modules_to_save: ignoring it would give another model
    save_file(state, weights)
    if damage == 'half a file': weights.write_bytes(weights.read_bytes()[:500])
    if damage == 'no file': weights.unlink()
    if damage == 'no config': (adapter/'adapter_config.json').unlink()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    with pytest.raises(InputError): merge_adapter(base, adapter)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_defaults_are_those_of_the_published_adapter():
    c = TuneCfg()
    assert (c.rank, c.alpha, c.dropout, c.lam, set(c.targets)) == (8, 16, .05, .02, set(SEVEN)) and len(SEVEN) == 7


def test_same_seed_same_detour():
    def start(seed): return [p for n, p in add_lora(timer(), seed=seed).named_parameters() if 'lora_A' in n]
    assert all(torch.equal(a, b) for a, b in zip(start(1), start(1))) and not torch.equal(start(1)[0], start(2)[0])


# ---------------------------------------------------------------- lengths and batches
def test_any_length(model):
    for L in LENGTHS:
        q = model.quantiles(records(6, L, f'length {L}'))
        assert q.shape == (6, 96, 7) and torch.isfinite(q).all(), L
        assert (q.diff(dim=-1) >= 0).all(), L
    for L in (1, 11):
        with pytest.raises(ValueError, match='at least 12 cycles'): model(torch.ones(2, L))


def test_shape_is_asked_for_first(model):
    for odd in (torch.ones(96), torch.ones(2, 96, 1), torch.ones(2, 0)):
        with pytest.raises(ValueError): model(odd)


def test_no_record_no_forecast(model): assert model(torch.ones(0, 96)).shape == (0, 96)


def test_timer_takes_any_length_from_one_patch_on():
    m = timer()
    for L in (96, 97, 191, 192, 1000, 2880, 4000): assert torch.isfinite(m(records(2, L, f'timer {L}'))).all()
    with pytest.raises(ValueError, match='at least 96'): m(torch.ones(1, 95))


def test_what_is_older_than_the_longest_context_does_not_matter(model):
    x = records(4, 1500, 'old')
    assert torch.equal(model.quantiles(x), model.quantiles(x[:, -960:]))
    assert not torch.equal(model(x), model(x[:, -480:]))                      # and what is younger does


def test_batch_of_one_equals_batch_of_many(model):
    for L in (12, 24, 96, 333):
        x = records(30, L, f'batch {L}')
        torch.testing.assert_close(model.quantiles(x), torch.cat([model.quantiles(r[None]) for r in x]), atol=1e-5, rtol=0)
        torch.testing.assert_close(model(x.flip(0)), model(x).flip(0), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- odd records
@pytest.mark.parametrize('level', (0., .5, .9, 1.1))
def test_constant_windows_stay_constant(model, level):
    noise = 6e-8*torch.randint(-1, 2, (4, 200), generator=torch_stream(0, 'ulp'))     # what float32 makes of a constant
    for x in (torch.full((4, 200), level), torch.full((4, 200), level) + noise):
        for L in (12, 24, 96, 200):
            q = model.quantiles(x[:, -L:])
            assert torch.isfinite(q).all() and (q - level).abs().max() < .03       # the 95 % band: the prior knows cells that drop
            assert (q[..., 3] - level).abs().max() < .002


def test_odd_records_give_finite_ordered_quantiles(model):
    t = torch.arange(200.)
    odd = torch.stack([1 - .2*(t > 150), 1 - 1e-3*t + .05*(t % 7 == 0), 1 - 1e-3*(t % 40), torch.where(t == 120, 0., .95), 1e-12*t, .8 + .01*torch.sin(t),
                       1 + 3e-3*t, torch.where(t < 199, .9, .2), 50*(1 - 1e-3*t), torch.zeros(200)])
    for L in (12, 24, 96, 200):
        q = model.quantiles(odd[:, -L:])
        assert torch.isfinite(q).all() and (q.diff(dim=-1) >= 0).all()


def test_one_bad_record_spoils_no_other(model):
    x = records(5, 120, 'bad'); good = model(x).clone()
    x[2, 60] = math.nan
    assert torch.equal(torch.isfinite(model(x)).all(1), torch.tensor([True, True, False, True, True]))
    torch.testing.assert_close(model(x)[[0, 1, 3, 4]], good[[0, 1, 3, 4]], atol=1e-6, rtol=0)


def test_level_does_not_matter(model):
    x = records(50, 300, 'shift'); s = model.scale(x)[..., None]
    for c in (-.3, .1): assert (((model.quantiles(x+c) - c) - model.quantiles(x)).abs()/(s + 1e-3)).max() < 5e-3


def test_timer_follows_shift_and_scale():
    m, x = timer(), records(20, 250, 'affine')
    x = x[x.std(1) > 1e-3]
    for a, b in ((2., 0.), (1., -.4), (.25, .1)): torch.testing.assert_close(m(a*x+b), a*m(x)+b, atol=2e-5, rtol=0)


def test_scale_matters_little_to_what_ships():
    "Battery-Timer is told how large its window is, so it need not follow a change of scale exactly; but nearly."
    m, x = shipped('timer-mini'), records(200, 96, 'scale')
    last, s = x[:, -1:], m.scale(x)
    for a in (.5, 2.): assert (((m(last + a*(x-last)) - last)/a - (m(x) - last)).abs()/s).mean() < .1


# ---------------------------------------------------------------- beyond the horizon
def test_extend_inside_the_horizon_is_the_model_itself(model):
    x = records(6, 480, 'extend'); near = model.quantiles(x)
    for hor in (1, 48, 95, 96): assert torch.equal(extend(model, x, hor), near[:, :hor])
    for hor in (97, 200, 480): assert torch.equal(extend(model, x, hor)[:, :48], near[:, :48])
    for hor in (0, -3):
        with pytest.raises(ValueError, match='hor must be >= 1'): extend(model, x, hor)


@pytest.mark.parametrize('L', (12, 24, 40, 96, 150, 480))
def test_extend_takes_any_horizon(model, L):
    x = records(4, L, f'any {L}')
    for hor in (97, 100, 192, 193, 300, 1000):
        q = extend(model, x, hor)
        assert q.shape == (4, hor, 7) and torch.isfinite(q).all() and (q.diff(dim=-1) >= 0).all(), hor


def test_a_longer_request_agrees_where_the_coarse_steps_agree(model):
    x = records(4, 480, 'prefix')
    torch.testing.assert_close(extend(model, x, 480)[:, :400], extend(model, x, 400), atol=1e-6, rtol=0)      # both in steps of five


def test_uncertainty_grows_with_the_horizon():
    m, x = shipped('timer-mini'), records(200, 480, 'grow')
    q = extend(m, x, 480)
    width = (q[..., 5] - q[..., 1]).mean(0)
    assert width[10] < width[90] < width[240] < width[470]


# ---------------------------------------------------------------- what ships
def test_thousand_windows_in_time(model):
    x = records(1000, 96, 'speed'); model.quantiles(x[:10])
    t = time.perf_counter(); model.quantiles(x)
    assert time.perf_counter() - t < 6           # 1.5 s on two idle cores; here one core, and others beside us


@pytest.mark.parametrize('name', ('timer-mini', 'battery-timer'))
def test_shipped_weights_beat_rulers_on_fresh_curves(name):
    m = shipped(name)
    assert m.n_params <= 3_000_000 and m.cfg.levels == (.025, .1, .25, .5, .75, .9, .975)
    x = records(1500, 192, 'fresh', seed=987_654)              # a stream that no training uses
    q, y = m.quantiles(x[:, :96]), x[:, 96:]
    ours, bars = metrics(q[..., 3], y)['mae'], {k: metrics(f(x[:, :96], 96), y)['mae'] for k, f in NAIVE.items()}
    assert ours < .8*min(bars['persistence'], bars['linear-96'], bars['linear-96 anchored']), (ours, bars)
    assert ours < .95*min(bars.values()), (ours, bars)
    inside = ((y >= q[..., 1]) & (y <= q[..., 5])).float().mean()
    assert .70 < inside < .90, f'the 80 % band covers {inside:.0%}'


def test_shipped_weights_use_a_longer_context():
    m, x = shipped('timer-mini'), records(600, 384+96, 'memory', seed=987_654)
    short, long = (metrics(m(x[:, 384-L:384]), x[:, 384:])['mae'] for L in (48, 384))
    assert long < .97*short


def test_shipped_adapter_is_what_the_card_says():
    "The shipped model is either the base plus its adapter, or, if tuning was not chosen, the base itself, with the adapter beside it for those who want it."
    folder = weights_dir()/'battery-timer'
    if not (folder/'adapter').is_dir(): pytest.skip('no adapter among the weights of this checkout')
    x, ships = records(500, 192, 'adapter', seed=987_654), shipped('battery-timer')
    base, tuned = shipped('timer-mini')(x[:, :96]), merge_adapter(shipped('timer-mini'), folder/'adapter').eval()(x[:, :96])
    chosen = json.loads((folder/'config.json').read_text()).get('tuning')
    torch.testing.assert_close(ships(x[:, :96]), base if chosen == 'as it is' else tuned, atol=1e-5, rtol=0)
    assert (tuned - base).abs().max() > 1e-4                                   # it does something,
    assert metrics(tuned, x[:, 96:])['mae'] < .8*metrics(NAIVE['linear-96'](x[:, :96], 96), x[:, 96:])['mae']      # and no nonsense
    assert (folder/'adapter'/'adapter_model.safetensors').stat().st_size < 1e6
