"""Papermill runs every study with the small parameters of `tests/smoke/NAME.yaml`, and every chapter that has such a file.

Chapters run whole, with their own parameters, in `nbdev_test` (second step of `make test`); they are not run twice here.
What was executed is kept in `build/notebooks/`."""
import os
import nbformat, papermill, pytest, yaml
from books import CHAPTERS, STUDIES, directives
from conftest import BUILD, ROOT

SMOKE = ROOT/'tests'/'smoke'
BOOKS = STUDIES + [p for p in CHAPTERS if (SMOKE/f'{p.stem}.yaml').exists()]
LIMIT_S = 600


def stamp(folder): return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob('*')) if p.is_file()}


def run(path, params, out):
    "Execute a notebook in a folder of its own; unknown parameters are an error, not a warning."
    known = set(papermill.inspect_notebook(str(path)))
    assert set(params) <= known, f'{path.name} has no parameters {sorted(set(params) - known)}; it has {sorted(known)}'
    cwd = out/path.stem/'nbs'/'studies'                 # as deep as in the project, so that ../../results stays inside `out`
    cwd.mkdir(parents=True, exist_ok=True)
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if c.cell_type != 'code' or not (directives(c.source) & {'notest', 'slow'} or '#| eval: false' in c.source)]
    small = out/path.stem/f'{path.stem}.in.ipynb'
    nbformat.write(nb, small)
    done = out/path.stem/path.name
    papermill.execute_notebook(str(small), str(done), parameters=params, kernel_name='python3', cwd=str(cwd),
                               execution_timeout=LIMIT_S, start_timeout=120, progress_bar=False, log_output=False)
    small.unlink()
    return done


@pytest.mark.parametrize('path', BOOKS, ids=[p.stem for p in BOOKS])
def test_runs_with_small_parameters(path, monkeypatch):
    monkeypatch.delenv('MPLBACKEND', raising=False)     # the kernel chooses inline, so that the kept notebook has its pictures
    assert os.environ['IN_TEST'] == '1'
    before = {f: stamp(ROOT/f) for f in ('results', 'nbs', 'battnb/weights', 'battnb/assets')}
    done = run(path, yaml.safe_load((SMOKE/f'{path.stem}.yaml').read_text()) or {}, BUILD/'notebooks')
    nb = nbformat.read(done, 4)
    assert not [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'error']
    for folder, was in before.items(): assert stamp(ROOT/folder) == was, f'the small run changed files in {folder}/: pass the output folder as a parameter'


def test_every_study_has_small_parameters_and_nothing_is_left_over():
    studies, yamls = {p.stem for p in STUDIES}, {p.stem for p in SMOKE.glob('*.yaml')}
    assert studies <= yamls, f'write tests/smoke/NAME.yaml for {studies - yamls}'
    assert yamls <= studies | {p.stem for p in CHAPTERS}, f'no notebook for {yamls - studies}'


def toy(path, *sources):
    new = nbformat.v4
    cells = [new.new_code_cell(sources[0], metadata={'tags': ['parameters']})] + [new.new_code_cell(s) for s in sources[1:]]
    nbformat.write(new.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), path)
    return path


def test_unknown_parameter_fails(tmp_path):
    path = toy(tmp_path/'toy.ipynb', 'lam = 0.02', 'print(lam)')
    with pytest.raises(AssertionError, match='no parameters .*lamb'): run(path, {'lamb': .1}, tmp_path/'out')


def test_failing_cell_fails_and_parameters_arrive(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match='got 3'):
        run(toy(tmp_path/'bad.ipynb', 'n = 1', 'assert n < 2, f"got {n}"'), {'n': 3}, tmp_path/'out')
    done = run(toy(tmp_path/'good.ipynb', 'n = 1', '#| eval: false\n1/0', 'print(n)'), {'n': 3}, tmp_path/'out')
    assert nbformat.read(done, 4).cells[-1].outputs[0].text == '3\n'
