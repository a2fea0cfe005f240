"""The project's promises about itself: order of imports, notebooks and package in step, notebooks fit to be committed."""
import ast, filecmp, json, re, sys
import nbformat, pytest
from books import ALL, CHAPTERS, NBS, STUDIES, cells, code, directives, outputs_text, tree
from conftest import ROOT

def ids(paths): return dict(argvalues=paths, ids=[p.stem for p in paths])
def number(path): return int(path.stem[:2])
def module_of(path): return next((m.group(1) for c in code(path) if (m := re.search(r'#\|\s*default_exp\s+(\w+)', c['source']))), None)
NUMBER = {module_of(p): number(p) for p in CHAPTERS}


def battnb_imports(nodes):
    "Names of our own modules that some code imports, wherever in it."
    for node in (n for top in nodes for n in ast.walk(top)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module.startswith('battnb.'): yield node.module.split('.')[1]
            elif node.module == 'battnb': yield from (a.name for a in node.names)
        elif isinstance(node, ast.Import): yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('battnb.'))


# ---------------------------------------------------------------- order
@pytest.mark.parametrize('path', **ids(CHAPTERS))
def test_chapter_imports_only_earlier_ones(path):
    for c in code(path):
        for mod in battnb_imports(tree(c['source'])):
            if mod in NUMBER and mod != module_of(path):
                assert NUMBER[mod] < number(path), f"{path.name} imports battnb.{mod}, which is chapter {NUMBER[mod]:02d}; cell {c['id']}"


def test_models_import_no_data_no_loss_and_training_no_model():
    models, apart = {'timer', 'diffbatt', 'liquid', 'students'}, {'data', 'windows', 'evaluation', 'trend', 'distill'}
    for path in CHAPTERS:
        mod = module_of(path)
        used = {m for c in code(path) if 'export' in directives(c['source']) for m in battnb_imports(tree(c['source']))}
        if mod in models: assert not used & (apart | models - {mod}), f'{mod} imports {used & (apart | models)}'
        if mod == 'training': assert not used & (models | apart), f'training imports {used & (models | apart)}'


def test_every_chapter_has_a_module_of_its_own():
    assert len(NUMBER) == len(CHAPTERS) and None not in NUMBER      # two chapters may share a number; then neither imports the other


# ---------------------------------------------------------------- notebook cells
@pytest.mark.parametrize('path', **ids(ALL))
def test_import_cells_contain_only_imports(path):
    for c in code(path):
        body = tree(c['source'])
        imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in body]
        assert all(imports) or not any(imports), f"imports beside other code in cell {c['id']}:\n{c['source']}"


@pytest.mark.parametrize('path', **ids(ALL))
def test_cell_ids_present_and_unique(path):
    nb = json.loads(path.read_text())
    assert (nb['nbformat'], nb['nbformat_minor']) >= (4, 5)
    found = [c.get('id') for c in nb['cells']]
    assert all(found) and len(set(found)) == len(found)
    nbformat.validate(nbformat.read(path, 4))


def code_lines(src):
    "Lines with code: blank lines, comments and docstrings do not count."
    docs = {n for node in ast.walk(ast.parse(src)) if isinstance(node, ast.Expr) and isinstance(getattr(node.value, 'value', None), str)
            for n in range(node.lineno, node.end_lineno + 1)}
    return [line for n, line in enumerate(src.splitlines(), 1) if line.strip() and not line.lstrip().startswith('#') and n not in docs]


@pytest.mark.parametrize('path', **ids(CHAPTERS))
def test_export_cells_are_short(path):
    for c in code(path):
        if 'export' in directives(c['source']):
            n = len(code_lines(c['source']))
            assert n <= 40, f"export cell {c['id']} has {n} lines of code:\n{c['source'][:200]}"


@pytest.mark.parametrize('path', **ids(ALL))
def test_parameters_are_not_exported_and_stand_alone(path):
    tagged = [c for c in code(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) <= 1
    assert path not in STUDIES or tagged, 'a study needs a cell tagged parameters'
    for c in tagged: assert not directives(c['source']) & {'export', 'exporti', 'exports'}


@pytest.mark.parametrize('path', **ids(STUDIES))
def test_studies_export_nothing(path):
    for c in code(path): assert not directives(c['source']) & {'export', 'exporti', 'exports', 'default_exp'}


def test_no_undefined_names(sh):
    "As ruff sees them, except in quoted annotations: a module may name a type there that it must not import at the top."
    found = json.loads(sh('ruff', 'check', '--isolated', '--select', 'F821', '--output-format', 'json', 'nbs', ok=False).stdout)
    real = []
    for f in found:
        book = json.loads(open(f['filename']).read())['cells']
        line = ''.join(book[f['cell'] - 1]['source']).splitlines()[f['location']['row'] - 1]
        before = line[:f['location']['column'] - 1]
        assert f['message'].split('`')[1] in line
        if not (before.count("'") % 2 or before.count('"') % 2): real.append(f"{f['filename']} cell {f['cell']}: {f['message']}: {line.strip()}")
    assert not real, '\n'.join(real)


# ---------------------------------------------------------------- what notebooks store
@pytest.mark.parametrize('path', **ids(ALL))
def test_title_and_subtitle(path):
    first = next(c['source'] for c in cells(path) if c['cell_type'] == 'markdown')
    assert re.match(r'# \S.*\n+> \S', first), f'first markdown cell must be a title and a one-line subtitle, got:\n{first[:200]}'
    assert '\\' not in first.split('> ')[1].split('\n')[0], 'no backslash in the subtitle: it becomes a docstring'


@pytest.mark.parametrize('path', **ids(ALL))
def test_stored_outputs(path):
    outs = [o for c in code(path) for o in c.get('outputs', [])]
    assert outs, 'execute the notebook before committing it'
    assert not [o for o in outs if o['output_type'] == 'error']
    if path in CHAPTERS and number(path) < 90: assert any('image/png' in o.get('data', {}) or 'image/svg+xml' in o.get('data', {}) for o in outs), 'a chapter has a picture (the command line speaks in text)'
    for c, text in outputs_text(path): assert 'Traceback (most recent call last)' not in text, f"cell {c['id']}"


MACHINE = re.compile(r'(?<![\w.])/(?:work|root|tmp|home|Users|private|var/folders|opt)/[\w.-]+')

@pytest.mark.parametrize('path', **ids(ALL))
def test_no_traces_of_a_machine(path):
    for c, text in outputs_text(path):
        found = MACHINE.search(re.sub(r'https?://\S+', '', text))
        assert not found, f"output of cell {c['id']} names a place on somebody's machine: {found.group(0)}"
    for c in cells(path):
        assert not re.search(r'/(work|root)/', c['source']), f"cell {c['id']} names a place on somebody's machine"


@pytest.mark.parametrize('path', **ids(ALL))
def test_clock_times_are_not_printed(path):
    for c in code(path):
        found = re.search(r'print\([^\n]*\b(time\.|perf_counter|datetime\.now)', c['source'])
        assert not found, f"cell {c['id']} prints a clock: the stored output changes at every run"


# ---------------------------------------------------------------- in step
def test_package_in_step_with_notebooks(project_copy, sh):
    copy = project_copy()
    sh('nbdev_export', cwd=copy, IN_TEST=None, PYTHONPATH=str(copy))
    ours = sorted(p.name for p in (ROOT/'battnb').glob('*.py'))
    assert ours == sorted(p.name for p in (copy/'battnb').glob('*.py')), 'run make sync: the list of modules differs'
    differ = [n for n in ours if not filecmp.cmp(ROOT/'battnb'/n, copy/'battnb'/n, shallow=False)]
    assert not differ, f'run make sync and commit: {differ} differ from what the notebooks export'


def test_notebooks_in_step_with_clean(project_copy, sh):
    copy = project_copy()
    before = {p: p.read_bytes() for p in copy.joinpath('nbs').rglob('*.ipynb')}
    sh('nbdev_clean', cwd=copy)
    changed = [p.name for p, b in before.items() if p.read_bytes() != b]
    assert not changed, f'run make sync and commit: nbdev_clean changes {changed}'


def test_tags_survive_clean(project_copy, sh):
    copy = project_copy()
    cell = nbformat.v4.new_code_cell('lam = 0.02', metadata={'tags': ['parameters'], 'vendor': 1})
    path = copy/'nbs'/'99_tags.ipynb'
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    sh('nbdev_clean', '--fname', path, cwd=copy)
    assert json.loads(path.read_text())['cells'][0]['metadata'] == {'tags': ['parameters']}


# ---------------------------------------------------------------- the files around the notebooks
def targets(): return set(re.findall(r'^([\w-]+):(?!=)', (ROOT/'Makefile').read_text(), flags=re.M))

@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', '.ci/run'])
def test_make_targets_exist(name):
    text = (ROOT/name).read_text()
    named = set(re.findall(r'(?:^\s*|`)make ([a-z]+)', text, flags=re.M))
    assert named <= targets(), f'{name} names {named - targets()}, which the Makefile does not have'


def test_readme_shows_the_two_commands_and_help_names_every_target(sh):
    readme = (ROOT/'README.md').read_text()
    assert 'make demo' in readme and 'make test' in readme
    help_text = sh('make', '-s', 'help').stdout
    for t in targets() - {'lint', 'help'}: assert f'make {t}' in help_text, f'make help does not explain {t}'


def test_scripts_parse_and_setup_refuses_what_is_no_python(sh):
    sh('bash', '-n', ROOT/'.ci'/'run'); sh('sh', '-n', ROOT/'tools'/'setup.sh')
    r = sh('sh', ROOT/'tools'/'setup.sh', '/nonexistent/python', ok=False)
    assert r.returncode == 1 and 'PY must be Python 3.11 or later, got: /nonexistent/python' in r.stderr
    assert not r.stdout        # refused before anything was touched


def test_readme_python_is_tested_on_the_home_page():
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT/'README.md').read_text(), flags=re.M | re.S)
    home = '\n\n'.join(c['source'].strip() for c in code(NBS/'index.ipynb'))
    assert blocks and all(b.strip() in home for b in blocks), 'each python block of README.md must stand in nbs/index.ipynb, import and code in cells of their own'


def test_home_page_maps_every_chapter():
    said = ''.join(text for _, text in outputs_text(NBS/'index.ipynb'))
    missing = [p.name for p in CHAPTERS if f']({p.name})' not in said]
    assert not missing, f'run nbs/index.ipynb again: its map lacks {missing}'


def test_version_is_typed_once():
    import battnb
    assert f'version = {battnb.__version__}\n' in (ROOT/'settings.ini').read_text()
    assert 'dynamic = ["version"]' in (ROOT/'pyproject.toml').read_text()


def test_every_constraint_is_exact():
    for line in (ROOT/'constraints.txt').read_text().splitlines():
        if line and not line.startswith('#'): assert re.fullmatch(r'[a-z0-9-]+==[0-9][\w.]*', line), line
    assert '+cpu' not in (ROOT/'constraints.txt').read_text().split('\n', 6)[6]


def test_sidebar_groups_every_notebook():
    sys.path.insert(0, str(ROOT/'tools'))
    import docs
    cfg = docs.site_config(ROOT)
    listed = [p['href'] for p in docs.pages(cfg['website']['sidebar']['contents'])]
    assert sorted(listed) == sorted(p.relative_to(ROOT).as_posix() for p in ALL) and listed[0] == 'nbs/index.ipynb'
    assert 'More' not in [i.get('section') for i in cfg['website']['sidebar']['contents']], 'name it in _quarto.yml'
    assert cfg['project']['output-dir'] == '_docs'
