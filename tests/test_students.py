"""Students: counts, fresh-process loading, refusal of bad settings, robustness to odd contexts."""
import subprocess, sys
import pytest, torch
from battnb.core import InputError, torch_stream
from battnb.forecaster import load_forecaster
from battnb.students import Gate, GateCfg, ITransformer, ITransformerCfg, scale, student

NAMES = ['dlinear', 'paifilter', 'lightts', 'itransformer', 'mlp', 'gate']
CTX = .95 - 2e-4*torch.arange(96.) + 2e-3*torch.randn(5, 96, generator=torch_stream(0, 'ctx'))

@pytest.mark.parametrize('name,cfg,count', [
    ('dlinear', {}, 18_624), ('paifilter', {}, 49_602), ('paifilter', dict(width=128), 24_898), ('lightts', dict(width=512), 120_948), ('lightts', {}, 40_628),
    ('lightts', dict(width=128), 18_900), ('itransformer', {}, 14_880), ('itransformer', dict(d=64, ff=128), 46_048), ('itransformer', dict(d=512, ff=2048), 3_252_320),
    ('itransformer', dict(ctx=512, d=512, ff=2048), 3_465_312), ('itransformer', dict(ctx=1024, hor=192, d=512, ff=2048), 3_776_704), ('mlp', {}, 12_448)])
def test_published_counts(name, cfg, count): assert student(name, **cfg).n_params == count

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('norm', ['none', 'last', 'window'])
def test_every_scaling_saves_loads_and_trains(tmp_path, name, norm):
    model = student(name, norm=norm, seed=2)
    out = model.train()(CTX); assert out.shape == (5, 96)
    (out - 1).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval(); again = load_forecaster(model.save_pretrained(tmp_path))
    assert torch.equal(again(CTX), model(CTX)) and again.cfg == model.cfg

@pytest.mark.parametrize('name', NAMES)
def test_constant_long_and_short_contexts(name):
    model = student(name).eval()
    assert torch.isfinite(model(torch.full((2, 96), .9))).all()
    long = torch.cat([torch.rand(5, 50, generator=torch_stream(1, 'x')), CTX], 1)
    assert torch.equal(model(long), model(CTX)) and torch.equal(model.hidden(long), model.hidden(CTX))
    with pytest.raises(ValueError, match='at least 96 cycles, got 95'): model(CTX[:, 1:])
    with pytest.raises(ValueError, match='batch, L'): model(CTX[0])

@pytest.mark.parametrize('name', NAMES)
def test_rows_are_independent_and_seeds_matter(name):
    model = student(name).eval()
    torch.testing.assert_close(model(CTX)[2:3], model(CTX[2:3]), rtol=1e-5, atol=1e-6)
    same, other = student(name), student(name, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))

@pytest.mark.parametrize('name', ['dlinear', 'lightts', 'mlp', 'gate', 'paifilter'])
def test_shift_of_the_past_shifts_the_future_where_scaling_says_so(name):
    model = student(name, norm='last').eval()
    torch.testing.assert_close(model(CTX + .05), model(CTX) + .05, rtol=0, atol=2e-5)

def test_other_lengths():
    for name in NAMES:
        extra = dict(fits=((0, 4), (1, 24), (2, 48))) if name == 'gate' else {}
        assert student(name, ctx=48, hor=24, **extra)(CTX[:, -48:]).shape == (5, 24)

@pytest.mark.parametrize('bad,error,words', [
    (dict(name='tcn'), ValueError, "unknown student 'tcn'"), (dict(name='mlp', depth=2), TypeError, "no setting 'depth'"), (dict(name='mlp', norm='minmax'), ValueError, "got 'minmax'"),
    (dict(name='lightts', ctx=100), ValueError, 'multiple of the chunk'), (dict(name='lightts', width=100), ValueError, 'multiple of 32, got 100'),
    (dict(name='dlinear', kernel=4), ValueError, 'odd, got 4'), (dict(name='itransformer', d=30), ValueError, 'multiple of heads'), (dict(name='gate', fits=((2, 2),)), ValueError, r'got \(2, 2\)')])
def test_bad_settings_are_refused(bad, error, words):
    with pytest.raises(error, match=words): student(**bad)

def test_dlinear_is_one_matrix_under_two_scalings():
    for norm in ('none', 'last'):
        model = student('dlinear', norm=norm)
        with torch.no_grad(): [p.normal_(0, .1, generator=torch_stream(2, norm)) for p in model.parameters()]
        weight, bias = model.matrix(); z, shift, width = scale(CTX, norm)
        torch.testing.assert_close(model(CTX), (z @ weight.T + bias)*width + shift, rtol=1e-4, atol=1e-4)

def test_gate_never_leaves_its_continuations_even_after_training():
    model = Gate(GateCfg()); opt = torch.optim.Adam(model.parameters(), .05)
    for _ in range(30): opt.zero_grad(); (model(CTX) - .5).square().mean().backward(); opt.step()
    many = model.continuations((CTX - CTX[:, -1:])*16)/16 + CTX[:, -1:, None]; pred = model(CTX)
    assert (pred >= many.min(1)[0] - 1e-5).all() and (pred <= many.max(1)[0] + 1e-5).all()

def test_query_and_key_are_dead_with_one_token_at_any_depth():
    model = ITransformer(ITransformerCfg(layers=3, dropout=0.))
    model(CTX).square().mean().backward()
    for block in model.blocks: assert block.q.weight.grad.abs().max() == 0 == block.k.weight.grad.abs().max() < block.v.weight.grad.abs().max()

def test_loads_in_a_fresh_process(tmp_path):
    student('gate').save_pretrained(tmp_path)
    code = f"import battnb.students, torch; from battnb.forecaster import load_forecaster; print(load_forecaster({str(tmp_path)!r})(torch.ones(1, 96)).shape[1])"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == '96', out.stderr[-500:]
    code = "import battnb.students, sys; print([m for m in ('peft', 'sklearn', 'pandera', 'matplotlib.pyplot') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120).stdout.strip() == '[]'

def test_a_damaged_folder_says_so(tmp_path):
    folder = student('mlp').save_pretrained(tmp_path); (folder/'model.safetensors').write_bytes(b'x'*20)
    with pytest.raises(InputError, match='damaged'): load_forecaster(folder)

def test_one_constructor_for_every_student():
    import battnb.compress, battnb.liquid, battnb.recurrent, battnb.stream      # noqa: F401  an imported chapter registers its forecasters
    for name, cfg in {'liquid': dict(units=4), 'recurrent': dict(cell='cfc', units=4), 'stream': dict(units=0), 'dlnet': dict(units=4, rank=4, ctx=96, hor=96), 'low-rank': dict(rank=2)}.items():
        assert student(name, **cfg).eval()(CTX).shape == (5, 96)
    with pytest.raises(TypeError, match="no setting 'depth'"): student('recurrent', depth=2)
