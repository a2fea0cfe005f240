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
    assert battnb.__all__ == ['forecast', 'life', 'load', 'models'] and set(battnb.__all__) <= set(dir(battnb))
    with pytest.raises(AttributeError, match='it has forecast, life, load, models'): battnb.forcast
    assert battnb.load is __import__('battnb.data').data.load


@pytest.mark.parametrize('name', ['forecast', 'life', 'models'])
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
    plain, optional, missing = declared(), declared('edge', 'readers', 'studies'), []
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
