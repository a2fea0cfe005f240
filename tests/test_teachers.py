"""Teachers: one face for our own models, ensembles, draws of curves and published foundation models (tiny checkpoints written with the packages' own classes)."""
import dataclasses, json, sys, textwrap
import numpy as np, pytest, torch
from battnb.core import InputError, torch_stream, weights_dir
from battnb.distill import Recipe, distill, teacher_key, teacher_outputs
from battnb.forecaster import load_forecaster
from battnb.students import student
from battnb.teachers import DECILES, Chronos, Ensemble, MeanCurve, Moirai, Own, Teacher, TimeMoE, TimesFM, at_levels, load_teacher

GEN = torch_stream(0, 'test teachers')
CTX = .95 - 3e-4*torch.arange(200.) + 1e-3*torch.randn(5, 200, generator=GEN)

@pytest.fixture(autouse=True)
def offline(monkeypatch): monkeypatch.setenv('HF_HUB_OFFLINE', '1')

def check_face(t, horizon, hidden=None):
    "What every teacher promises."
    assert not t.training and not any(p.requires_grad for p in t.parameters()) and t.n_params > 0
    with torch.no_grad(): q, y = t.quantiles(CTX), t(CTX)
    assert q.shape == (5, horizon, len(t.levels)) and y.shape == (5, horizon) and y.dtype == CTX.dtype and torch.isfinite(q).all()
    assert (q.diff(dim=-1) >= 0).all() and torch.equal(y, q[..., t.levels.index(.5)])
    again = t(CTX); torch.testing.assert_close(again, y)
    if hidden: assert t.hidden(CTX).shape == hidden
    else:
        with pytest.raises(ValueError, match='shows no hidden states'): t.hidden(CTX)

def check_cached(make, tmp_path):
    "Asked once; another weight, another file; a student learns from it."
    t = make(); teacher_outputs(t, CTX, cache=tmp_path); key = teacher_key(t, CTX)
    assert teacher_key(make(), CTX) == key and len(list(tmp_path.glob('*.npy'))) == 1
    with torch.no_grad(): next(p for p in t.parameters() if p.ndim > 1).add_(1e-3)
    assert teacher_key(t, CTX) != key
    pupil = student('mlp', ctx=96, hor=24)
    class W: ctx, targ, cell_id = CTX, torch.zeros(5, 24), np.array(list('abcde'))
    before = pupil(CTX).detach().clone()
    distill(pupil, make(), W, recipe=Recipe(response=1.), steps=3, batch_size=4, cache=tmp_path)
    assert not torch.equal(pupil(CTX), before)

def test_own_is_the_model_itself(tmp_path):
    model = load_forecaster(weights_dir()/'battery-timer'); t = load_teacher('battery-timer')
    with torch.no_grad(): assert torch.equal(t(CTX), model(CTX)) and torch.equal(t.quantiles(CTX), model.quantiles(CTX))
    check_face(t, 96, tuple(t.hidden(CTX).shape)); check_face(Own(model, 150), 150, tuple(t.hidden(CTX).shape))
    check_cached(lambda: Own(load_forecaster(weights_dir()/'battery-timer'), 24), tmp_path)

def test_ensemble_weights_levels_and_checksum():
    a, b = load_teacher('battery-timer'), Own(student('mlp', seed=3))
    check_face(Ensemble([a, b]), 96)
    one, other = Ensemble([a, b], [1, 0]), Ensemble([a, b], [1, 3])
    torch.testing.assert_close(one.quantiles(CTX), a.quantiles(CTX))
    assert teacher_key(one, CTX) != teacher_key(other, CTX)                    # the weights of the members are part of the checksum
    assert Ensemble([Own(a.model, 48), a]).horizon == 48
    for bad in ([], [-1, 2], [0, 0], [1]):
        with pytest.raises(ValueError): Ensemble([a, b] if bad else [], bad or None)

@pytest.mark.parametrize('have,want', [((.5,), (.1, .5, .9)), ((.1, .5, .9), (.025, .1, .3, .5, .975)), (DECILES, (.25, .5, .75))])
def test_levels_are_read_in_order_and_exactly_where_shared(have, want):
    q = torch.randn(4, 7, len(have), generator=GEN).sort(-1).values; out = at_levels(q, have, want)
    assert out.shape == (4, 7, len(want)) and (out.diff(dim=-1) >= 0).all()
    for p in set(have) & set(want): torch.testing.assert_close(out[..., want.index(p)], q[..., have.index(p)])

def test_interface_refuses():
    with pytest.raises(ValueError, match='horizon must be >= 1'): Teacher(0, (.5,))
    with pytest.raises(ValueError, match='contain 0.5'): Teacher(96, (.9, .5))
    with pytest.raises(InputError, match="no teacher 'nobody'"): load_teacher('nobody')
    with pytest.raises(InputError, match='trust_remote_code=True'): load_teacher('timemoe:anywhere')

def test_a_missing_package_is_named(monkeypatch):
    for kind, package in (('chronos', 'chronos'), ('timesfm', 'timesfm'), ('moirai', 'uni2ts')):
        for name in [m for m in sys.modules if m.split('.')[0] == package]: monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=f"needs the package '{package}'.*pip install"): load_teacher(f'{kind}:x')

# ---------------------------------------------------------------- draws of curves
class Draws:
    "Stands in for DiffBatt: parabolas that end at different cycles, NaN behind the end."
    def __init__(self, n=7): self.n = n
    def complete(self, cells, draws=7, **options):
        m, L = len(cells), int(cells.cycles.cycle.max()); G = 30
        ends = np.linspace(40, 300, draws)[None, :, None]; grid = np.linspace(0, 1, G)*ends
        start = np.array([cells.soh(i)[-1] for i in cells.ids])[:, None, None]
        soh = start - 2e-4*grid - 1e-6*grid**2; soh = np.broadcast_to(soh, (m, draws, G)).copy(); soh[:, 0, -3:] = np.nan
        class C: cycle, cutoff = np.broadcast_to(L + grid, (m, draws, G)), np.full(m, L)
        C.soh = soh
        return C

def test_mean_curve_reads_draws_at_the_right_cycles():
    t = MeanCurve(Draws(), horizon=60, draws=7); ahead = torch.arange(1., 61)
    q = t.quantiles(CTX); assert q.shape == (5, 60, 5) and (q.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(q[:, :30, 2], (CTX[:, -1:] - 2e-4*ahead - 1e-6*ahead**2)[:, :30], rtol=0, atol=1e-4)
    assert (t(CTX)[:, 0] < CTX[:, -1]).all() and torch.isfinite(t(CTX)).all()   # short draws go on with their slope

def test_mean_curve_with_diffbatt():
    try: from battnb.completion import DiffBatt                                # chapter 43 teaches it to complete
    except ImportError: pytest.skip('chapter 40 (diffbatt) is not there')
    folder = weights_dir()/'diffbatt'
    if not folder.is_dir(): pytest.skip('no weights of DiffBatt are shipped')
    t = MeanCurve(DiffBatt.from_pretrained(folder), horizon=48, draws=3, steps=4)
    with torch.no_grad(): assert t.quantiles(CTX[:2]).shape == (2, 48, 5) and torch.isfinite(t(CTX[:2])).all()
    a = teacher_key(t, CTX[:2]); assert a == teacher_key(MeanCurve(DiffBatt.from_pretrained(folder), horizon=48, draws=3, steps=4), CTX[:2])

# ---------------------------------------------------------------- published foundation models, tiny and local
def chronos_folder(folder):
    bolt = pytest.importorskip('chronos.chronos_bolt', reason='chronos-forecasting is not installed (extra "teachers")')
    from transformers import T5Config
    torch.manual_seed(0)
    cfg = T5Config(d_model=16, d_ff=32, d_kv=8, num_layers=1, num_decoder_layers=1, num_heads=2, vocab_size=2, dense_act_fn='relu', feed_forward_proj='relu', pad_token_id=0, decoder_start_token_id=0,
                   architectures=['ChronosBoltModelForForecasting'], chronos_config=dict(context_length=256, prediction_length=32, input_patch_size=16, input_patch_stride=16, quantiles=list(DECILES), use_reg_token=True))
    bolt.ChronosBoltModelForForecasting(cfg).save_pretrained(folder)
    return folder

def test_chronos_bolt(tmp_path):
    folder = chronos_folder(tmp_path/'bolt'); t = load_teacher(f'chronos:{folder}')
    assert isinstance(t, Chronos) and t.levels == DECILES
    check_face(t, 96, (5, 14, 16))                                             # rolled beyond its own 32 steps
    from chronos.chronos_bolt import ChronosBoltPipeline
    wanted = ChronosBoltPipeline.from_pretrained(str(folder)).predict(CTX, prediction_length=24)
    torch.testing.assert_close(Chronos(folder, 24).quantiles(CTX), wanted.transpose(1, 2).sort(-1).values)   # the package's own call says the same, but random weights let quantiles cross
    check_cached(lambda: Chronos(folder, 24), tmp_path)
    (folder/'model.safetensors').unlink()
    with pytest.raises(InputError, match='could not be loaded as chronos'): load_teacher(f'chronos:{folder}')

def timesfm_folder(folder, monkeypatch):
    pytest.importorskip('timesfm', reason='timesfm is not installed (extra "teachers")')
    from timesfm.timesfm_2p5 import timesfm_2p5_torch as m
    c = m.TimesFM_2p5_200M_torch_module.config; D = 32; block = lambda b, out: dataclasses.replace(b, hidden_dims=D, input_dims=D, output_dims=out)
    tiny = dataclasses.replace(c, tokenizer=dataclasses.replace(c.tokenizer, hidden_dims=D, output_dims=D), output_projection_point=block(c.output_projection_point, 1280), output_projection_quantiles=block(c.output_projection_quantiles, 10240),
        stacked_transformers=dataclasses.replace(c.stacked_transformers, num_layers=1, transformer=dataclasses.replace(c.stacked_transformers.transformer, model_dims=D, hidden_dims=D, num_heads=2)))
    monkeypatch.setattr(m.TimesFM_2p5_200M_torch_module, 'config', tiny)       # the class holds its sizes; nothing else of it is replaced
    torch.manual_seed(0); folder.mkdir(); m.TimesFM_2p5_200M_torch(torch_compile=False)._save_pretrained(folder)
    return folder

def test_timesfm(tmp_path, monkeypatch):
    folder = timesfm_folder(tmp_path/'fm', monkeypatch); t = load_teacher(f'timesfm:{folder}', 96, max_context=200, batch_size=4)
    assert isinstance(t, TimesFM) and t.levels == DECILES
    check_face(t, 96); check_cached(lambda: TimesFM(folder, 24, 200, 4), tmp_path)
    point, columns = t.wrapper.forecast(96, [x.numpy() for x in CTX])
    np.testing.assert_allclose(np.sort(columns[..., 1:], -1)[..., 4], t(CTX).numpy(), atol=1e-6)   # deciles, not the mean column

def test_moirai(tmp_path):
    moirai = pytest.importorskip('uni2ts.model.moirai2', reason='uni2ts pins NumPy 1.26 and torch below 2.5: see MOIRAI in chapter 62 for how to install it without its pins')
    torch.manual_seed(0); moirai.Moirai2Module(d_model=64, d_ff=64, num_layers=1, patch_size=16, max_seq_len=64, attn_dropout_p=0., dropout_p=0.).save_pretrained(tmp_path/'m')
    t = load_teacher(f'moirai:{tmp_path/"m"}', 40, max_context=192)
    assert isinstance(t, Moirai); check_face(t, 40)

REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class TinyConfig(PretrainedConfig):
    model_type = 'tiny_point_decoder'
    def __init__(self, width=8, horizons=(1, 8), **kw): self.width, self.horizons = width, list(horizons); super().__init__(**kw)

class TinyForPrediction(PreTrainedModel):
    "Same call as TimeMoE: points in, (batch, L, horizon) out, the longest head that is not longer than asked."
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.read, self.heads = nn.Linear(1, config.width), nn.ModuleList(nn.Linear(config.width, h) for h in config.horizons)
        self.post_init()
    def forward(self, input_ids=None, max_horizon_length=None, use_cache=None, return_dict=True, **kw):
        k = max(i for i, h in enumerate(self.config.horizons) if h <= max_horizon_length)
        return CausalLMOutput(logits=self.heads[k](torch.tanh(self.read(input_ids)).cumsum(1)/torch.arange(1, input_ids.shape[1] + 1)[:, None]))
"""
def test_timemoe_rolls_its_heads_and_asks_for_trust(tmp_path, monkeypatch):
    pytest.importorskip('transformers'); monkeypatch.setenv('HF_MODULES_CACHE', str(tmp_path/'modules'))
    folder = tmp_path/'moe'; folder.mkdir(); (folder/'tiny_code.py').write_text(textwrap.dedent(REMOTE)); sys.path.insert(0, str(folder))
    try:
        from tiny_code import TinyConfig, TinyForPrediction
        torch.manual_seed(0); model = TinyForPrediction(TinyConfig()); model.save_pretrained(folder)
    finally: sys.path.remove(str(folder))
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | dict(auto_map=dict(AutoConfig='tiny_code.TinyConfig', AutoModelForCausalLM='tiny_code.TinyForPrediction'))))
    with pytest.raises(InputError, match='brings its own Python code'): TimeMoE(folder)
    t = load_teacher(f'timemoe:{folder}', 21, trust_remote_code=True)
    check_face(t, 21)
    asked = []; whole = t.model.forward
    t.model.forward = lambda **kw: (asked.append((kw['input_ids'].shape[1], kw['max_horizon_length'])), whole(**kw))[1]
    t(CTX); assert [a[0] for a in asked] == [200, 208, 216, 217, 218, 219, 220] and asked[0][1] == 21     # 8 + 8 + five single steps
    torch.testing.assert_close(t(CTX*2 + 3), t(CTX)*2 + 3, rtol=0, atol=2e-4)  # standardised by the context: scale and shift pass through
