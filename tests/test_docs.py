"""The website: every link leads somewhere, and every page looks right in a browser, at a desk and on a phone."""
import json, os, re, shutil, stat, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import nbformat, pytest
import browser
from books import ALL, CHAPTERS, cells
from conftest import BUILD, ROOT

needs_browser = pytest.mark.skipif(not browser.find() and os.environ.get('CI') != 'true', reason='no Chromium or Chrome found (required on CI)')
pytestmark = pytest.mark.xdist_group('site')      # one worker builds the site and looks at it
PHONE_SLACK = 2     # px that rounding may add to the width of a page


def render(copy, out, sh, renderer='pandoc', **env):
    sh(sys.executable, copy/'tools'/'docs.py', '--root', copy, '--out', out, '--renderer', renderer, cwd=copy, **env)
    return out


@pytest.fixture(scope='module')
def site(project_copy):
    import subprocess
    copy = project_copy()
    add_sample(copy)
    out = BUILD/f"site{os.environ.get('PYTEST_XDIST_WORKER', '')}"        # each worker its own: the group above is a wish, not a lock
    r = subprocess.run([sys.executable, copy/'tools'/'docs.py', '--root', copy, '--out', out, '--renderer', 'pandoc'], cwd=copy, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return out


def add_sample(copy):
    "A notebook with one of everything, so that the renderer is tested whatever the chapters happen to use."
    new = nbformat.v4
    out = lambda **data: [new.new_output('display_data', data={k.replace('_', '/'): v for k, v in data.items()})]
    book = [new.new_raw_cell('---\nskip_exec: true\n---'),
            new.new_markdown_cell('# Sample\n> One of everything, with $x^2$ in the subtitle.\n\nIntroduction that must survive.'),
            new.new_code_cell('#| default_exp sample'), new.new_code_cell('#| export\nimport os'), new.new_code_cell('#| hide\nimport sys'),
            new.new_markdown_cell('## Equations\n\nInline $\\tau$ and\n\n$$\\dot{s} = -\\frac{s}{\\tau}$$\n\n::: {.callout-warning}\n## Mind the gap\nIn a callout.\n:::\n\nSee [core](00_core.ipynb#named-generators), [its `stream`](00_core.ipynb) and `stream`.'),
            new.new_code_cell('#| export\ndef sample_function(x): return x'),
            new.new_code_cell('#| echo: false\nsecret_source = 1', outputs=out(text_html='<table border="1"><tr><td>html &amp; table</td></tr></table>')),
            new.new_code_cell('#| include: false\nnever_shown = 1', outputs=out(text_plain='never shown output')),
            new.new_code_cell('#| output: asis\nas_is = 1', outputs=out(text_markdown='**bold as is**', text_plain='<object>')),
            new.new_code_cell('print("a<b")', outputs=[new.new_output('stream', name='stdout', text='\x1b[31ma<b\x1b[0m\n')])]
    folder = copy/'nbs'/'studies'; folder.mkdir(exist_ok=True)
    nbformat.write(new.new_notebook(cells=book), copy/'nbs'/'99_sample.ipynb')
    nbformat.write(new.new_notebook(cells=[new.new_markdown_cell('# Deep\n> In a folder.\n\nBack to [the sample](../99_sample.ipynb) and `sample_function`.'),
                                           new.new_code_cell('1', outputs=out(text_plain='1'))]), folder/'99_deep.ipynb')


class Page(HTMLParser):
    "Ids, links and sources of a page."
    def __init__(self, path):
        super().__init__(); self.ids, self.links = set(), []
        self.feed(path.read_text())
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        self.links += [a[k] for k in ('href', 'src') if a.get(k)]


def pages(site): return sorted(site.rglob('*.html'))


# ---------------------------------------------------------------- before anything is built
def test_quarto_configuration_fits_its_schema():
    "Also as Quarto sees it: with patterns expanded and seen from the folder of notebooks."
    import jsonschema, yaml
    schema = json.loads((ROOT/'tests'/'quarto_schema.json').read_text())
    cfg = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    jsonschema.validate(cfg, schema)
    sys.path.insert(0, str(ROOT/'tools'))
    import docs
    jsonschema.validate(docs.strip_prefix(docs.site_config(ROOT)), schema)
    cfg['website']['page-navigaton'] = True
    with pytest.raises(jsonschema.ValidationError, match='page-navigaton'): jsonschema.validate(cfg, schema)


def test_spelling(tmp_path):
    "Prose of every notebook and page, against a list of common misspellings."
    import subprocess
    for p in ALL: (tmp_path/f'{p.stem}.md').write_text(re.sub(r'```.*?```|`[^`]*`|\$[^$]*\$|https?:\S+', ' ', '\n\n'.join(c['source'] for c in cells(p, 'markdown')), flags=re.S))
    for n in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'): shutil.copy(ROOT/n, tmp_path/n)
    for p in (ROOT/'battnb'/'weights').glob('*/README.md'): shutil.copy(p, tmp_path/f'{p.parent.name}-card.md')
    r = subprocess.run([sys.executable, '-m', 'codespell_lib', '--ignore-words-list', WORDS, str(tmp_path)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr

WORDS = 'mape,soh,nd,ue,te,fo,hist,ba,ther,readd,mor,ans,thi,hass,flate,cas,nin,coo,dout'    # names and symbols


# ---------------------------------------------------------------- without a browser
def test_every_notebook_is_a_page(site):
    assert len(pages(site)) == len(ALL) + 3              # the sample, the deep one, the API page
    for f in ('index.html', 'api.html', 'site/style.css', 'site/search.js'): assert (site/f).exists(), f


def test_every_link_leads_somewhere(site):
    parsed = {p: Page(p) for p in pages(site)}
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            url = urlsplit(link)
            if url.netloc.endswith('github.io') or '/battnb/battnb' in url.path: broken.append(f'{path.name}: {link} (nothing is published there)')
            if url.scheme in ('http', 'https', 'mailto', 'data'): continue
            target = (path.parent/unquote(url.path)).resolve() if url.path else path
            if not target.is_file(): broken.append(f'{path.name}: {link}')
            elif url.fragment and target in parsed and unquote(url.fragment) not in parsed[target].ids: broken.append(f'{path.name}: {link} (no such anchor)')
    assert not broken, '\n'.join(broken)


def test_directives_front_matter_and_links_of_the_sample(site):
    text = (site/'sample.html').read_text()
    body = text.split('<main', 1)[1]
    assert 'Introduction that must survive' in body and '<math' in body.split('class="subtitle"')[1].split('</p>')[0]
    for hidden in ('secret_source', 'never_shown', 'never shown output', 'default_exp', 'import os', 'import sys', 'skip_exec', '&lt;object&gt;', '\x1b'): assert hidden not in body, hidden
    for shown in ('html &amp; table', '<strong>bold as is</strong>', 'a&lt;b', 'as_is'): assert shown in body, shown
    assert re.search(r'class="callout callout-warning".*?Mind the gap', body, flags=re.S) and '<h2 id="mind-the-gap"' not in body
    assert 'href="core.html#named-generators"' in body
    assert '<a href="core.html">its <code>stream</code></a> and <a href="core.html#stream"><code>stream</code></a>' in body, 'links do not nest'
    assert '<code id="sample_function">' in body
    assert 'href="../sample.html"' in (site/'studies'/'deep.html').read_text()


def test_no_notebook_prose_is_lost(site):
    "Every word that a chapter says in its markdown cells is on its page."
    words = lambda s: set(re.findall(r'[A-Za-z]{5,}', s))
    for path in CHAPTERS:
        page = site/f"{path.stem.split('_', 1)[1]}.html"
        said = words(re.sub(r'\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|https?:\S+|\{[^}]*\}|<!--.*?-->|^:::.*$|^\|[-| :]+\|$', ' ', '\n'.join(c['source'] for c in cells(path, 'markdown')), flags=re.S | re.M))
        missing = said - words(page.read_text())
        assert len(missing) <= 3, f'{path.name}: {sorted(missing)}'


def test_search_index_finds_symbols(site):
    rows = json.loads((site/'site'/'search.js').read_text().removeprefix('window.siteIndex = ').rstrip(';'))
    assert any(r[2] == 'sample_function' for r in rows) and any(r[0].startswith('core.html#') for r in rows)
    assert (site/'site'/'search.js').stat().st_size < 3e6


def test_broken_notebook_stops_the_build(project_copy, sh, tmp_path):
    copy = project_copy()
    (copy/'nbs'/'98_broken.ipynb').write_text('{"cells": [')
    r = sh(sys.executable, copy/'tools'/'docs.py', '--root', copy, '--out', tmp_path/'out', '--renderer', 'pandoc', cwd=copy, ok=False)
    assert r.returncode != 0 and '98_broken' in r.stderr
    assert not (copy/'nbs'/'_quarto.yml').exists() and not (tmp_path/'out').exists()


def test_quarto_is_used_where_it_is_installed(project_copy, sh, tmp_path):
    "A stand-in notes how it was called and what it was given; the real one is not needed."
    copy, bin_dir = project_copy(), tmp_path/'bin'
    bin_dir.mkdir()
    fake = bin_dir/'quarto'
    fake.write_text('#!/bin/sh\necho "$@" > called.txt\nmkdir -p _docs && cp -r *.ipynb *.qmd *.yml called.txt _docs/\n')
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    out = render(copy, tmp_path/'out', sh, 'auto', PATH=f"{bin_dir}{os.pathsep}{os.environ['PATH']}")
    import yaml
    cfg = yaml.safe_load((out/'_quarto.yml').read_text())
    assert (out/'called.txt').read_text() == 'render --no-execute\n'
    listed = json.dumps(cfg['website']['sidebar'])
    assert 'nbs/' not in listed and '00_core.ipynb' in listed and 'api.qmd' in listed and (out/'api.qmd').exists()
    assert 'class=\\"defines\\"' in (out/'00_core.ipynb').read_text()


# ---------------------------------------------------------------- with a browser
PROBE = """(() => {
  const shown = e => e && e.getClientRects().length > 0
  const box = document.querySelector('main')
  return {
    title: document.title, h1: document.querySelectorAll('h1').length, nav: document.querySelectorAll('#sidebar a').length,
    navShown: shown(document.querySelector('#sidebar')), menuShown: shown(document.querySelector('#menu')),
    current: document.querySelectorAll('#sidebar [aria-current=page]').length,
    broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src), noAlt: [...document.images].filter(i => !i.alt).length,
    math: document.querySelectorAll('math').length, flat: [...document.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().width).length,
    mathErrors: document.querySelectorAll('merror').length,
    prose: [...box.querySelectorAll('p, li, td, h2, h3')].map(e => { const c = e.cloneNode(true); c.querySelectorAll('code, pre, math').forEach(x => x.remove()); return c.textContent }).join('\\n'),
    wide: document.documentElement.scrollWidth, view: document.documentElement.clientWidth,
    bad: [...document.querySelectorAll('pre.output.error')].map(e => e.textContent), text: box.innerText,
  }
})()"""


@pytest.fixture(scope='module')
def chrome():
    assert browser.find(), 'no Chromium found: apt-get install chromium'
    with browser.Browser() as b: yield b


def display_equations(path):
    "How many `$$…$$` the markdown cells of a notebook contain."
    return sum(len(re.findall(r'\$\$.+?\$\$', c['source'], flags=re.S)) for c in cells(path, 'markdown'))


@needs_browser
@pytest.mark.parametrize('size', ['desktop', 'phone'])
def test_every_page_in_a_browser(site, chrome, size):
    books = {p.stem.split('_', 1)[-1] if p.stem[0].isdigit() else p.stem: p for p in ALL}
    faults = []
    for path in pages(site):
        chrome.open(path.as_uri(), size, dark=size == 'phone')
        got = chrome.eval(PROBE)
        name = path.relative_to(site).as_posix()
        def check(ok, what, name=name): ok or faults.append(f'{name} ({size}): {what}')
        check(not chrome.errors, f'console: {chrome.errors}')
        check(got['h1'] == 1 and got['nav'] >= len(ALL) and got['current'] == 1, f"navigation: {got['h1']} h1, {got['nav']} links, {got['current']} marked")
        check(got['navShown'] == (size == 'desktop') and got['menuShown'] == (size == 'phone'), 'menu for this width')
        check(not got['broken'], f"images not loaded: {got['broken']}")
        check(not got['noAlt'], f"{got['noAlt']} images without a text for those who cannot see them")
        check(not got['bad'] and 'Traceback (most recent call last)' not in got['text'], f"error text: {got['bad']}")
        markup = re.search(r'.{0,40}(\$\$|\\(?:frac|tau|sum|mathrm|text)\b|:::|\{#|\]\().{0,40}', got['prose'])
        check(not markup, f'markup printed as text: {markup and markup.group(0)}')
        check(not got['flat'] and not got['mathErrors'], f"{got['flat']} equations without width, {got['mathErrors']} with errors")
        if path.stem in books: check(got['math'] >= display_equations(books[path.stem]), f"{got['math']} equations, the notebook has {display_equations(books[path.stem])}")
        check(got['wide'] <= got['view'] + PHONE_SLACK, f"page is {got['wide']} px wide in a window of {got['view']}")
    assert not faults, '\n'.join(faults)


@needs_browser
def test_search_theme_menu_and_copy_work(site, chrome):
    chrome.open((site/'studies'/'deep.html').as_uri())
    hits = chrome.eval("(async () => { box.value = 'sample_function'; await search(); return [...hits.querySelectorAll('a')].map(a => a.href) })()")
    assert hits and hits[0].endswith('sample.html#sample_function') and Path(unquote(urlsplit(hits[0]).path)).resolve().exists()
    assert chrome.eval("(async () => { box.value = 'zzqqxx'; await search(); return hits.innerText })()") == 'Nothing found'
    colour = "getComputedStyle(document.body).backgroundColor"
    light = chrome.eval(colour)
    chrome.eval("document.querySelector('#theme').click()")
    assert chrome.eval(colour) != light
    chrome.eval("document.querySelector('#theme').click()")
    assert chrome.eval(colour) == light
    chrome.open((site/'core.html').as_uri(), dark=True)
    chrome.eval("localStorage.clear(); delete document.documentElement.dataset.theme")
    assert chrome.eval(colour) != light, 'the system preference for dark is followed'
    assert chrome.eval("document.querySelectorAll('div.sourceCode .copy').length") > 3
    chrome.open((site/'core.html').as_uri(), 'phone')
    chrome.eval("document.querySelector('#menu').click()")
    assert chrome.eval("document.querySelector('#sidebar').getClientRects().length") > 0


@needs_browser
def test_screenshots_for_people(site, chrome):
    shots = BUILD/'screenshots'
    shutil.rmtree(shots, ignore_errors=True)
    for name in ('index', 'sample', 'core', 'api', 'guide/start', 'guide/results'):
        for size in browser.SIZES:
            for dark in (False, True):
                chrome.open((site/f'{name}.html').as_uri(), size, dark)
                chrome.screenshot(shots/f"{name.replace('/', '-')}-{size}{'-dark' if dark else ''}.png")
    assert len(list(shots.glob('*.png'))) == 24 and all(p.stat().st_size > 5000 for p in shots.glob('*.png'))
