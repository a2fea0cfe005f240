"""Training as processes: killed and resumed, and shared between two processes."""
import os, signal, subprocess, sys, textwrap, time
import numpy as np
import pandas as pd
import pytest, torch
from torch import nn
from battnb.core import InputError
from battnb.training import fit

SCRIPT = textwrap.dedent("""
    import sys, time, torch
    from torch import nn
    from battnb.core import stream
    from battnb.training import fit
    out, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    def batches(step):
        time.sleep(pause)
        x = torch.from_numpy(stream(0, f'batch {step}').normal(size=(30, 8)).astype('float32'))
        return x, x[:, :1]*x[:, 1:2]
    hist = fit(model, batches, lambda p, t: (p-t).square().mean(), steps=steps, every=5, ema=.9, lr=.01, ckpt=out + '.pt')
    import os
    if os.environ.get('RANK', '0') == '0':
        hist.table.drop(columns='seconds').to_parquet(out + '.parquet')
        torch.save(model.state_dict(), out + '.weights')
""")


@pytest.fixture
def script(tmp_path):
    path = tmp_path/'train.py'
    path.write_text(SCRIPT)
    return path


def test_killed_and_resumed_gives_the_same_weights(script, tmp_path):
    subprocess.run([sys.executable, script, tmp_path/'whole', '40', '0'], check=True)
    p = subprocess.Popen([sys.executable, script, tmp_path/'cut', '40', '.05'])
    until = time.time() + 60
    while not (tmp_path/'cut.pt').exists() and time.time() < until: time.sleep(.05)
    p.send_signal(signal.SIGKILL); p.wait()
    assert (tmp_path/'cut.pt').exists() and not (tmp_path/'cut.weights').exists()
    subprocess.run([sys.executable, script, tmp_path/'cut', '40', '0'], check=True)
    whole, cut = (torch.load(tmp_path/f'{n}.weights', weights_only=True) for n in ('whole', 'cut'))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path/f'{n}.parquet') for n in ('whole', 'cut')))


def test_two_processes_give_the_loss_curve_of_one(script, tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')} | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    subprocess.run([sys.executable, script, tmp_path/'one', '20', '0'], check=True, env=env)
    subprocess.run([sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no',
                    '--dynamo_backend', 'no', '--main_process_port', '0', script, tmp_path/'two', '20', '0'], check=True, env=env, timeout=240)
    one, two = (pd.read_parquet(tmp_path/f'{n}.parquet') for n in ('one', 'two'))
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-4)
    assert one.loss.iloc[-1] != one.loss.iloc[0]


def test_other_settings_and_damage_are_refused(tmp_path):
    def run(**kw):
        torch.manual_seed(0); model = nn.Linear(2, 1)
        return fit(model, lambda step: (torch.ones(4, 2)*step, torch.ones(4, 1)), lambda p, t: (p-t).square().mean(), **({'steps': 4, 'every': 2, 'ckpt': tmp_path/'c.pt'} | kw))
    run()
    with pytest.raises(InputError, match='was written with'): run(steps=8)
    (tmp_path/'c.pt').write_bytes(b'')
    with pytest.raises(InputError, match='damaged'): run()
