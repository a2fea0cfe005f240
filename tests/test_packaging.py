"""What a user installs: the wheel holds everything it needs, imports at once, and works away from the checkout."""
import ast, importlib.metadata, os, re, subprocess, sys, zipfile
import pytest
from conftest import ROOT

LIMIT_MB = 25           # weights and assets that ship, all together
pytestmark = pytest.mark.xdist_group('wheel')


@pytest.fixture(scope='module')
def wheel(project_copy, tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    r = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(out), str(project_copy())],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return next(out.glob('battnb-*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp('installed')
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def python(installed, *args):
    env = {k: v for k, v in os.environ.items() if k != 'BATTNB_DATA'} | {'PYTHONPATH': str(installed)}
    return subprocess.run([sys.executable, *args], cwd=installed, env=env, capture_output=True, text=True)


def test_wheel_contains_all_that_ships_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT/'battnb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert ours <= names, f'missing from the wheel: {sorted(ours - names)}'
    assert 'battnb/py.typed' in names and any(n.endswith('licenses/LICENSE') for n in names)
    assert not [n for n in names if not re.match(r'battnb(/|-[\d.]+\.dist-info/)', n)]
    assert sum(p.stat().st_size for f in ('assets', 'weights') for p in (ROOT/'battnb'/f).rglob('*') if p.is_file()) < LIMIT_MB*1e6


def test_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    read = lambda name: z.read(next(n for n in z.namelist() if n.endswith(f'.dist-info/{name}'))).decode()
    assert 'battnb = battnb.app:main' in read('entry_points.txt') and 'battnb = battnb._modidx:d' in read('entry_points.txt')
    meta = read('METADATA')
    assert 'Requires-Python: >=3.11' in meta and 'License-Expression: Apache-2.0' in meta
    plain = [line for line in meta.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert not re.search('nbdev|jupyter|ziglang|tensorflow|pytest', '\n'.join(plain)), 'a plain install needs no notebook, no compiler, no test tool'


def test_works_away_from_the_checkout(installed):
    r = python(installed, '-W', 'error', '-c', "import battnb; print(battnb.__file__); f = battnb.load('fleet'); assert len(f) > 10 and not f.measured")
    assert r.returncode == 0, r.stderr
    assert r.stdout.startswith(str(installed))


def test_import_is_quick_and_lazy(installed):
    best = []
    for _ in range(3):
        r = python(installed, '-X', 'importtime', '-c', "import sys, battnb; print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib', 'peft') if m in sys.modules])")
        assert r.returncode == 0 and r.stdout.strip() == '[]', r.stdout + r.stderr[-500:]
        best.append(int(re.search(r'\|\s*(\d+) \| battnb$', r.stderr, flags=re.M).group(1))/1e6)
    assert min(best) < .3, f'import battnb takes {min(best):.2f} s'


def test_public_names():
    import battnb
    assert set(battnb.__all__) <= set(dir(battnb))
    with pytest.raises(AttributeError, match='it has forecast, life, load, models, show, synth'): battnb.forcast
    assert battnb.load is __import__('battnb.data').data.load


def surface():
    "What users build on: functions with their arguments and defaults, commands with their options, columns of the tables."
    import battnb, inspect, typer
    from battnb.app import app
    yield from (f'battnb.{n}({", ".join(str(p).split(":")[0].split("=")[0].strip() + ("" if p.default is p.empty else f"={p.default!r}") for p in inspect.signature(getattr(battnb, n)).parameters.values())})' for n in battnb.__all__)
    for name, c in sorted(typer.main.get_command(app).commands.items()): yield f"battnb {name} {' '.join(sorted(o for p in c.params for o in (p.opts if p.param_type_name == 'option' else [p.name.upper()])))}"
    small = battnb.load('fleet').take(battnb.load('fleet').ids[:1])
    yield f"forecast: {', '.join(battnb.forecast(small, h=2, model='persistence', level=(), at=100))}"
    yield f"life: {', '.join(battnb.life(small, model='persistence'))}"
    yield f"models: {', '.join(battnb.models())}"

def test_public_surface_is_pinned():
    "A change here is a change for users: write it into CHANGELOG.md, then into tests/public_surface.txt."
    want, got = (ROOT/'tests'/'public_surface.txt').read_text().splitlines(), list(surface())
    assert got == want, '\n'.join(['this is the surface now:', *got])


@pytest.mark.parametrize('name', ['forecast', 'life', 'models', 'show', 'synth'])
def test_public_names_resolve(name):
    import battnb
    assert callable(getattr(battnb, name))


def declared(*extras):
    "Distributions that pyproject.toml names, for a plain install and for some extras."
    import tomllib
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    lines = project['dependencies'] + [d for e in extras for d in project['optional-dependencies'][e]]
    return {re.match(r'[\w.-]+', d).group(0).lower().replace('_', '-') for d in lines}


def test_every_import_of_the_package_is_declared():
    "At the top of a module: a plain dependency. Inside a function: a plain one or one of an extra for users."
    dists = importlib.metadata.packages_distributions()
    plain, optional, missing = declared(), declared('cluster', 'compress', 'edge', 'edge-tf', 'readers', 'search', 'studies', 'teachers'), []
    for path in sorted((ROOT/'battnb').glob('*.py')):
        top = ast.parse(path.read_text())
        for node in ast.walk(top):
            if isinstance(node, ast.Import): names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0: names = [node.module]
            else: continue
            for name in {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - {'battnb', 'IPython', '__main__'}:
                have = {d.lower().replace('_', '-') for d in dists.get(name, [name])}
                if not have & (plain if node in top.body else plain | optional): missing.append(f'{path.name}:{node.lineno} {name}')
    assert not missing, f'add to pyproject.toml: {missing}'


# ---------------------------------------------------------------- an environment with nothing else in it
def needed():
    "Names of the distributions that a plain install brings, and theirs, as pip would resolve them here."
    from packaging.requirements import Requirement
    import tomllib
    todo = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['dependencies']
    todo, found = [(Requirement(r), '') for r in todo], {}
    while todo:
        r, _ = todo.pop()
        name = r.name.lower().replace('_', '-')
        extras = {''} | set(r.extras)
        if found.get(name, set()) >= extras: continue
        found[name] = found.get(name, set()) | extras
        for sub in importlib.metadata.distribution(r.name).requires or []:
            q = Requirement(sub)
            if q.marker is None or any(q.marker.evaluate(dict(extra=e)) for e in extras): todo.append((q, name))
    return found

@pytest.fixture(scope='module')
def empty(wheel, tmp_path_factory):
    "A virtual environment that holds the wheel and what it declares, linked from here: no notebook, no compiler, no test tool."
    import venv
    home = tmp_path_factory.mktemp('empty')/'venv'
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home/'lib').glob('python3*'))/'site-packages'
    for name in needed():
        dist = importlib.metadata.distribution(name)
        tops = {f.parts[0] for f in dist.files or [] if f.parts[0] not in ('..', '__pycache__')}
        for top in tops:
            if (src := dist.locate_file(top)).exists() and not (site/top).exists(): (site/top).symlink_to(src)
    zipfile.ZipFile(wheel).extractall(site)
    return home/'bin'/'python'

def run_empty(empty, *args, **kw):
    env = {k: v for k, v in os.environ.items() if k not in ('BATTNB_DATA', 'PYTHONPATH')}
    return subprocess.run([str(empty), *args], env=env, capture_output=True, text=True, **kw)

def test_forecasts_in_an_empty_environment(empty, tmp_path):
    import pandas as pd, numpy as np
    pd.DataFrame(dict(cell_id=np.repeat(['A', 'B'], 60), cycle=np.tile(np.arange(1, 61), 2), cap_ah=np.tile(2 - .002*np.arange(60), 2))).to_csv(tmp_path/'cells.csv', index=False)
    r = run_empty(empty, '-W', 'error', '-c', "import importlib.util as u, battnb; print(battnb.__file__, [m for m in ('tensorflow', 'ziglang', 'unicorn', 'nbdev', 'pytest', 'papermill', 'dask', 'optuna', 'chronos') if u.find_spec(m)])")
    assert r.returncode == 0 and 'empty' in r.stdout and r.stdout.strip().endswith('[]'), r.stdout + r.stderr
    call = 'from battnb.app import main; main()'
    r = run_empty(empty, '-c', call, 'forecast', 'cells.csv', '-n', '5', cwd=tmp_path)
    assert r.returncode == 0 and len(r.stdout.splitlines()) == 11 and r.stdout.startswith('cell_id,cutoff,cycle,battery-timer,battery-timer-lo-80'), r.stderr
    for args in (['check', 'cells.csv'], ['life', 'cells.csv', '-m', 'linear-20'], ['models'], ['data']):
        r = run_empty(empty, '-c', call, *args, cwd=tmp_path); assert r.returncode == 0, (args, r.stderr)
    r = run_empty(empty, '-c', call, 'run', 'cells.csv', cwd=tmp_path)
    assert r.returncode == 1 and "pip install 'battnb[edge]'" in r.stderr and 'Traceback' not in r.stderr, r.stderr
    r = run_empty(empty, '-c', call, 'rerun', '05_run', cwd=tmp_path)
    assert r.returncode == 1 and "battnb[studies]" in r.stderr and 'Traceback' not in r.stderr, r.stderr

def test_source_distribution_holds_what_the_wheel_holds(project_copy, wheel, tmp_path):
    import tarfile
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    r = subprocess.run([sys.executable, '-c', code], cwd=project_copy(), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    inside = {n.split('/', 1)[1] for n in tarfile.open(next(tmp_path.glob('*.tar.gz'))).getnames() if '/' in n}
    shipped = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('battnb/')}
    assert shipped <= inside, sorted(shipped - inside)
    assert {'README.md', 'LICENSE', 'pyproject.toml'} <= inside

@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get('BATTNB_SLOW'), reason='installs torch from the package registry, which takes minutes: BATTNB_SLOW=1 runs it')
def test_pip_installs_the_wheel_into_a_new_environment(wheel, tmp_path):
    "As a user does it: a new environment, `pip install` of the wheel without extras, then a forecast."
    import venv
    venv.create(tmp_path/'venv', with_pip=True, symlinks=True)
    env = {k: v for k, v in os.environ.items() if k not in ('BATTNB_DATA', 'PYTHONPATH')}
    run = lambda *args: subprocess.run([str(tmp_path/'venv'/'bin'/args[0]), *map(str, args[1:])], capture_output=True, text=True, cwd=tmp_path, env=env)
    asked = run('python', '-m', 'pip', 'download', '-q', '--no-deps', '-d', tmp_path/'asked', 'fastcore')
    if asked.returncode: pytest.skip(f'no package registry: {asked.stderr.strip().splitlines()[-1][:120]}')
    r = run('python', '-m', 'pip', 'install', '-q', '-c', ROOT/'constraints.txt', wheel)
    assert r.returncode == 0, r.stderr[-2000:]
    (tmp_path/'cells.csv').write_text('cell,cycle,capacity (Ah)\n' + ''.join(f'{c},{k},{2-.002*k:.4f}\n' for c in 'AB' for k in range(1, 61)))
    r = run('battnb', 'forecast', 'cells.csv', '-n', '5')
    assert r.returncode == 0 and len(r.stdout.splitlines()) == 11 and 'Traceback' not in r.stderr, r.stderr
    r = run('python', '-W', 'error', '-c', "import battnb, importlib.util as u; print([m for m in ('tensorflow', 'ziglang', 'nbdev', 'pytest', 'jupyterlab') if u.find_spec(m)])")
    assert r.returncode == 0 and r.stdout.strip() == '[]', r.stdout + r.stderr
    assert run('python', '-m', 'pip', 'check').returncode == 0
    assert run('battnb', 'models', '--json').stdout.count('battery-timer') >= 1
