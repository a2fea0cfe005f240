"""What every test may rely on: one thread, no export in mid-test, a cache of its own, an empty folder as working directory."""
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT/'build'        # what a test run leaves behind for people to look at: executed notebooks, the site, screenshots
os.environ['IN_TEST'] = '1'                             # a trailing nbdev_export() in a notebook must not rewrite the package
os.environ.setdefault('OMP_NUM_THREADS', '1')           # two workers on two cores should not fight over them
os.environ.setdefault('HF_HUB_OFFLINE', '1')            # no test may depend on somebody else's server
os.environ.setdefault('JUPYTER_PLATFORM_DIRS', '1')
os.environ['PATH'] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"   # commands of this environment, activated or not


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    "Downloads and teacher outputs of tests stay out of the user's cache."
    old = os.environ.get('BATTNB_CACHE')
    os.environ['BATTNB_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield
    os.environ.pop('BATTNB_CACHE') if old is None else os.environ.update(BATTNB_CACHE=old)


@pytest.fixture(autouse=True)
def empty_cwd(tmp_path, monkeypatch):
    "Relative paths land in a folder that nobody else sees."
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='session')
def project_copy(tmp_path_factory):
    "A copy of the project as it is on disk, where a test may export, clean and render; returns a function that makes one."
    def make():
        dest = tmp_path_factory.mktemp('project')/'battnb'
        skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.tmp', '_quarto.yml.lock')
        for part in ('nbs', 'battnb', 'tools', 'tests'): shutil.copytree(ROOT/part, dest/part, ignore=skip)
        for part in ('settings.ini', 'pyproject.toml', '_quarto.yml', 'README.md', 'LICENSE', 'constraints.txt'): shutil.copy(ROOT/part, dest)
        for stale in ('_quarto.yml', 'nbdev.yml', 'sidebar.yml'): (dest/'nbs'/stale).unlink(missing_ok=True)
        return dest
    return make


@pytest.fixture
def sh():
    "Run a command; fail with its output if its exit status is not zero."
    def run(*cmd, cwd=ROOT, ok=True, **env):
        full = {k: v for k, v in {**os.environ, **env}.items() if v is not None}
        r = subprocess.run([str(c) for c in cmd], cwd=cwd, env=full, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if ok: assert r.returncode == 0, f'{cmd} ended with {r.returncode}\n{r.stdout[-4000:]}\n{r.stderr[-4000:]}'
        return r
    return run
