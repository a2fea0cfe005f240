"""Choice among models: identities on random tables, ties, and tables that cannot be used."""
import matplotlib
matplotlib.use('agg')
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from battnb.core import InputError
from battnb.pareto import hypervolume, knee, pareto_front, pick, plot_front

COLS = ['mae', 'kb', 'ms']
table = st.lists(st.tuples(*[st.integers(0, 6)]*3), min_size=1, max_size=25).map(lambda rows: pd.DataFrame(rows, columns=COLS, dtype=float))
fast = settings(max_examples=150, deadline=None, derandomize=True)

def brute(df, cols):
    x = df[cols].to_numpy()
    return [not any((b <= a).all() and (b < a).any() for b in x) for a in x]

@fast
@given(table, st.sampled_from([COLS, COLS[:2], COLS[:1]]))
def test_front_is_the_definition(df, cols):
    front = pareto_front(df, cols)
    assert list(front) == brute(df, cols) and front.any() and front.index.equals(df.index)

@fast
@given(table, st.randoms(use_true_random=False))
def test_front_ignores_order_units_and_dominated_rows(df, random):
    front = pareto_front(df, COLS)
    order = list(df.index); random.shuffle(order)
    assert pareto_front(df.loc[order], COLS).loc[df.index].equals(front)
    assert pareto_front(df*[3, .01, 1e6], COLS).equals(front) and pareto_front(np.exp(df), COLS).equals(front)
    assert pareto_front(df[front], COLS).all()

@fast
@given(table)
def test_hypervolume_grows_with_the_front_only(df):
    ref = dict.fromkeys(COLS, 7.)
    whole, front = hypervolume(df, ref), df[pareto_front(df, COLS)]
    assert whole == pytest.approx(hypervolume(front, ref))
    assert whole >= hypervolume(df.iloc[:len(df)//2 + 1], ref) - 1e-9
    corners = df.drop_duplicates()
    grid = np.stack(np.meshgrid(*[np.arange(7)]*3), -1).reshape(-1, 3)          # integer objectives: count unit cubes
    assert whole == pytest.approx((corners.to_numpy()[:, None] <= grid).all(2).any(0).sum())

@fast
@given(table, st.integers(0, 6), st.integers(0, 6))
def test_pick_respects_limits_and_lies_on_the_front(df, kb, ms):
    within = df[(df.kb <= kb) & (df.ms <= ms)]
    if within.empty:
        with pytest.raises(InputError, match='no model respects all limits'): pick(df, COLS, dict(kb=kb, ms=ms))
        return
    row = pick(df, COLS, dict(kb=kb, ms=ms))
    assert row.kb <= kb and row.ms <= ms and row.mae == within.mae.min() and pareto_front(within, COLS)[row.name]
    near = pick(df, ['mae', 'kb'], dict(kb=kb, ms=ms), slack=.5)
    assert near.mae <= 1.5*row.mae and near.kb <= row.kb

@fast
@given(table)
def test_knee_is_on_the_front_whatever_the_units(df):
    row = knee(df, COLS)
    assert pareto_front(df, COLS)[row.name]
    assert (knee(df*[2, 16, .125], COLS).to_numpy()/[2, 16, .125] == row.to_numpy()).all()

@pytest.mark.parametrize('df, cols, text', [
    (pd.DataFrame(dict(a=[1.])), ['b'], r"missing \['b'\], present \['a'\]"), (pd.DataFrame(dict(a=[])), ['a'], 'empty'), (pd.DataFrame(dict(a=['x'])), ['a'], 'must be numbers'),
    (pd.DataFrame(dict(a=[1, np.inf])), ['a'], "got inf in column 'a', row 1"), (pd.DataFrame(dict(a=[1.])), [], 'needs the columns')])
def test_unusable_tables(df, cols, text):
    for f in (pareto_front, knee, pick):
        if cols or f is not pick:
            with pytest.raises(InputError, match=text): f(df, cols)

def test_slack_must_not_be_negative():
    with pytest.raises(ValueError, match='slack must be >= 0, got -1'): pick(pd.DataFrame(dict(a=[1.])), 'a', slack=-1)

def test_nothing_is_changed():
    df = pd.DataFrame(dict(mae=[1., 2.], kb=[2., 1.])); before = df.copy()
    pareto_front(df, ['mae', 'kb']); knee(df, ['mae', 'kb'], log=['kb']); pick(df, 'mae', dict(kb=5)); hypervolume(df, dict(mae=3, kb=3))
    plot_front(df, 'kb', 'mae', limits=dict(kb=1.5, mae=1.5), marks=dict(best=df.iloc[0]))
    pd.testing.assert_frame_equal(df, before)

def test_the_page_holds_the_table_and_nothing_dangerous(tmp_path):
    import json, re
    from battnb.pareto import front_page, off_target
    df = pd.DataFrame(dict(name=['a"b', '</script><script>alert(1)</script>'], mae=[1., 2.], kb=[3., 4.]))
    page = front_page(df, ['mae', 'kb'], 'name', dict(kb=3.5), '<b>', tmp_path/'front.html')
    assert page.count('</script>') == 1 and '&lt;b>' in page and (tmp_path/'front.html').read_text() == page
    rows = json.loads(re.search(r'const data = (\[.*?\]), cols', page).group(1))
    assert [r['name'] for r in rows] == list(df.name) and [r['kb'] for r in rows] == [3, 4]
    with pytest.raises(InputError, match='got nan'): front_page(df.assign(mae=[1, np.nan]), ['mae'], 'name')
    assert off_target(.7) == pytest.approx(.1)
