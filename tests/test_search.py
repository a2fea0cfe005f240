"""Search: killed and resumed, several processes, failures, known runs."""
import os, signal, subprocess, sys, time
import numpy as np
import pandas as pd
import pytest
pytest.importorskip('optuna')
from battnb.core import InputError
from battnb.search import found, importances, search, survivors

GOALS = ['error', 'cost']

def space(trial): return dict(x=trial.suggest_float('x', 0, 1), wide=trial.suggest_categorical('wide', [False, True]))
def score(s): return dict(error=(s['x'] - .3)**2 + .1*s['wide'], cost=s['x'], extra=1)

def test_failures_cost_a_trial_and_nothing_more(tmp_path):
    def sometimes(s):
        if s['x'] > .5: raise RuntimeError('no')
        return dict(error=float('nan'), cost=1.) if s['x'] < .1 else score(s)
    df = search(sometimes, space, GOALS, tmp_path/'a.log', n_trials=20)
    assert len(df) and df.x.between(.1, .5).all() and np.isfinite(df[GOALS]).all(axis=None) and df.front.any() and (df.extra == 1).all()
    assert len(search(sometimes, space, GOALS, tmp_path/'a.log', n_trials=20)) == len(df)

def test_same_seed_same_settings(tmp_path):
    a, b = (search(score, space, GOALS, tmp_path/f'{k}.log', n_trials=12, seed=3) for k in 'ab')
    pd.testing.assert_frame_equal(a, b)

def test_several_processes_share_a_record(tmp_path):
    df = search(score, space, GOALS, tmp_path/'p.log', n_trials=8, jobs=2, sampler='random')
    assert 6 <= len(df) <= 8 and sorted(df.number) == list(df.number)

def test_limits_and_known(tmp_path):
    known = pd.DataFrame([dict(x=.2, wide=False, error=.01, cost=.2), dict(x=.9, wide=False, error=.0, cost=.9)])
    df = search(score, space, GOALS, tmp_path/'k.log', n_trials=6, known=known, limits=dict(cost=.5))
    assert df.known.sum() == 2 and not df[df.cost > .5].front.any()
    with pytest.raises(InputError, match='is a search for'): found(tmp_path/'k.log', ['error'])
    with pytest.raises(TypeError, match="missing \\['cost'\\]"): search(lambda s: dict(error=1.), space, GOALS, tmp_path/'m.log', n_trials=1)

def test_killed_and_resumed(tmp_path):
    "A search killed between two trials goes on from its record."
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport time, test_search as t\nfrom battnb.search import search\nsearch(lambda s: (time.sleep(.2), t.score(s))[1], t.space, t.GOALS, {str(tmp_path/'r.log')!r}, n_trials=500)"
    p = subprocess.Popen([sys.executable, '-c', code])
    for _ in range(600):
        time.sleep(.2)
        if (tmp_path/'r.log').is_file() and (tmp_path/'r.log').read_text().count('"extra"') >= 3: break
    p.send_signal(signal.SIGKILL); p.wait()
    before = len(found(tmp_path/'r.log', GOALS))
    assert before >= 2
    assert len(search(score, space, GOALS, tmp_path/'r.log', n_trials=before + 3)) >= before + 2

def branches(trial):
    s = dict(kind=trial.suggest_categorical('kind', ['line', 'bend']), x=trial.suggest_float('x', 0, 1))
    if s['kind'] == 'bend': s |= dict(k=trial.suggest_int('k', 1, 9), wide=trial.suggest_categorical('wide', [False, True]), lam=trial.suggest_categorical('lam', [0., .1]))
    return s

def branch_score(s): return dict(error=(s['x'] - .3)**2 + .01*s.get('k', 5), cost=s['x'] + .1*s.get('k', 0))

def test_a_space_with_branches_survives_its_own_table(tmp_path):
    "Rows of a table have gaps and floats where settings had whole numbers; they are the same settings all the same."
    df = search(branch_score, branches, GOALS, tmp_path/'a.log', n_trials=30, sampler='random')
    assert len(df) == 30 and df.k.isna().any() and df.k.notna().any()
    go_on = survivors(df, GOALS, 6)
    assert len(go_on) == 6 and go_on.front.iloc[0]
    calls = []
    def counted(s): calls.append(s); return branch_score(s)
    rows = go_on[['kind', 'x', 'k', 'wide', 'lam']].to_dict('records')
    again = search(counted, branches, GOALS, tmp_path/'b.log', n_trials=6, first=rows)
    assert sorted(again.x) == sorted(go_on.x) and len(calls) == 6 and all(isinstance(s['k'], int) and isinstance(s['wide'], bool) for s in calls if s['kind'] == 'bend')
    search(counted, branches, GOALS, tmp_path/'b.log', n_trials=6, first=rows)
    assert len(calls) == 6                                                              # nothing is queued twice
    told = importances(tmp_path/'a.log', GOALS, 'error', dict(kind='bend'))
    assert set(told.index) == {'x', 'k', 'wide', 'lam'} and abs(told.sum() - 1) < 1e-6 and told.index[0] in ('x', 'k')
    with pytest.raises(InputError, match='four trials'): importances(tmp_path/'a.log', GOALS, 'no such figure')

def test_the_queue_of_a_killed_round_goes_on_in_two_processes(tmp_path):
    rows = [dict(x=i/10, wide=False) for i in range(10)]
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport time, test_search as t\nfrom battnb.search import search\nsearch(lambda s: (time.sleep(.3), t.score(s))[1], t.space, t.GOALS, {str(tmp_path/'r.log')!r}, n_trials=10, first={rows!r})"
    p = subprocess.Popen([sys.executable, '-c', code])
    for _ in range(600):
        time.sleep(.1)
        if (tmp_path/'r.log').is_file() and (tmp_path/'r.log').read_text().count('"extra"') >= 2: break
    p.send_signal(signal.SIGKILL); p.wait()
    before = len(found(tmp_path/'r.log', GOALS))
    assert 2 <= before < 10
    df = search(score, space, GOALS, tmp_path/'r.log', n_trials=10, first=rows, jobs=2)
    assert sorted(df.x) == [r['x'] for r in rows]                                       # also the one that was under way
